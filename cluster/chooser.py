"""What a router chooses by: the index of prefixes, and whose turn it is among equals."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Protocol, TypeVar

from ..engine.errors import Overloaded
from ..engine.request import Request
from .link import ModelCard
from .prefixes import PrefixIndex
from .standing import Standing, best, has_room

BUSY_RETRY_S = 1.0


class Candidate(Protocol):
    """A replica that may be chosen."""

    replica: str
    card: ModelCard

    def standing(self, cached: int = 0, last_used: int = 0) -> Standing:
        """What is known of it now; it gives back what it is given."""
        ...


C = TypeVar("C", bound=Candidate)


class Chooser:
    """Applies `choice.best` to replicas. Links keep `prefixes` true. Used on one event loop."""

    def __init__(self) -> None:
        self.prefixes = PrefixIndex()
        self._turn = itertools.count(1)
        self._last_turn: dict[str, int] = {}

    def choose(self, able: Sequence[C], request: Request) -> C:
        """The replica, of one or more with the same model, for a request."""
        by_name = {link.replica: link for link in able}
        card = able[0].card
        cached = self.prefixes.cached(request, card.block_size, by_name, card.window)
        standings = [
            link.standing(cached[name], self._last_turn.get(name, 0))
            for name, link in by_name.items()
        ]
        num_tokens = len(request.prompt) + len(request.emitted)
        chosen = best(standings, num_tokens, request.session).replica
        self._last_turn[chosen] = next(self._turn)
        return by_name[chosen]

    def forget(self, replica: str) -> None:
        """A replica is out of reach."""
        self.prefixes.forget(replica)
        self._last_turn.pop(replica, None)


def check_room(able: Sequence[Candidate], model: str) -> None:
    """Raise Overloaded where every one of the replicas that there are has a full queue."""
    if able and not any(has_room(link.standing()) for link in able):
        raise Overloaded(
            f"the queues of all {len(able)} replicas of {model} are full; come again later",
            BUSY_RETRY_S,
        )
