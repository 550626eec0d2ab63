"""The choice of a replica: a function of what is known of each, in tokens.

The cost of a request at a replica, in prompt tokens' worth of computing, is

    cost = (prompt - cached)            what it would have to compute of this prompt
         + tokens                       what others there still wait for to be computed
         + SEQUENCE * sequences         what those there will yet decode beside it
         - SESSION, at its home         what a session gains where it is at home

and the cheapest is chosen. So a cached prefix draws a request as much as it spares, and a queue
turns it away as much as it holds. A session's home is drawn by lot from its name and the replicas'
names: every gateway finds the same one, none has to remember it, and when a replica goes only its
own sessions move. Among equals the one goes first that this gateway has used the longest ago.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from hashlib import blake2b
from typing import NamedTuple

SEQUENCE = 32
"""Prompt tokens that cost as much as a sequence at work beside one's own."""

SESSION = 512
"""Prompt tokens that a session would rather compute than leave its home."""


class Standing(NamedTuple):
    """What is known of a replica, in tokens, as far as a request is concerned.

    `cached`: of its prompt, what the replica holds. `tokens`: what is yet to be computed there
    until every sequence has its next token. `room`: how many sequences more it takes, None: any
    number. `last_used` orders replicas by when they were last chosen here.
    """

    replica: str
    cached: int
    tokens: int
    sequences: int
    room: int | None = None
    last_used: int = 0


def cost(standing: Standing, num_prompt: int, home: str | None = None) -> int:
    """See above."""
    return (
        num_prompt
        - standing.cached
        + standing.tokens
        + SEQUENCE * standing.sequences
        - (SESSION if standing.replica == home else 0)
    )


def best(standings: Sequence[Standing], num_prompt: int, session: str = "") -> Standing:
    """The replica, of one or more, to send a request to.

    One whose queue is full is taken where all are: what is too much, the engine itself refuses.
    """
    able = [s for s in standings if has_room(s)] or standings
    home = home_of(session, [s.replica for s in standings]) if session else None
    return min(able, key=lambda s: (cost(s, num_prompt, home), s.last_used, s.replica))


def has_room(standing: Standing) -> bool:
    """Whether a replica takes more."""
    return standing.room is None or standing.room > 0


def home_of(session: str, replicas: Collection[str]) -> str:
    """Where a session is at home: the highest lot wins, so that others do not move with one.

    Source: highest random weight, Thaler and Ravishankar 1998.
    """
    name = session.encode(errors="surrogatepass")
    seed = blake2b(name, digest_size=16)

    def lot(replica: str) -> bytes:
        drawn = seed.copy()
        drawn.update(b"/" + replica.encode())
        return drawn.digest()

    return max(replicas, key=lambda replica: (lot(replica), replica))
