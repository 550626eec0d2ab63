"""What of a gateway runs on which replica: the book that `Failover` keeps.

A life is one start of choices on a replica, from being sent to the end of the last of them there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from .link import Link
from .state import Choice
from .stream import Generation

RESUMED_TOKENS = 8192
"""How many tokens a replica is given to compute anew at once, so that it does not die of them."""


@dataclass(slots=True, kw_only=True, eq=False)
class Life:
    """One start of choices on a replica; `open` are those that still run there.

    `anew` counts the tokens that are computed anew, until the first update. `since`: when it began
    to wait for this start, in seconds of `time.monotonic`. `alone`: nothing else may run there.
    `refused_by`: who has refused a request that has not begun anywhere.
    """

    generation: Generation
    open: list[Choice]
    link: Link
    since: float
    anew: int = 0
    alone: bool = False
    refused_by: frozenset[Link] = frozenset()


class Lives:
    """All lives of a gateway. `on_room` is called when a replica may have room for more of those
    that wait.
    """

    def __init__(self, on_room: Callable[[], None]) -> None:
        self._on_room = on_room
        self._life_of: dict[Choice, Life] = {}
        self._on: dict[Link, dict[Life, None]] = {}
        self._anew: dict[Link, int] = {}
        self._apart: dict[Link, Life] = {}

    def __len__(self) -> int:
        """Sequences that run somewhere."""
        return len(self._life_of)

    def __contains__(self, choice: Choice) -> bool:
        """Whether it runs somewhere."""
        return choice in self._life_of

    def of(self, choice: Choice) -> Life | None:
        """The life that a choice has now."""
        return self._life_of.get(choice)

    def links(self) -> list[Link]:
        """The replicas with lives."""
        return list(self._on)

    def on(self, link: Link) -> list[Life]:
        """The lives on a replica."""
        return list(self._on.get(link, ()))

    def begin(self, life: Life) -> None:
        """Enter a start."""
        self._life_of.update(dict.fromkeys(life.open, life))
        self._on.setdefault(life.link, {})[life] = None
        self._anew[life.link] = self._anew.get(life.link, 0) + life.anew

    def settle(self, life: Life) -> None:
        """A start has brought something, or has ended: it makes room for others."""
        if life.anew:
            self._anew[life.link] -= life.anew
            life.anew = 0
            self._on_room()
        if life.alone:
            life.alone = False
            del self._apart[life.link]
            self._on_room()

    def leave(self, choice: Choice) -> Link:
        """Part a choice from its replica, which is returned."""
        life = self._life_of.pop(choice)
        life.open.remove(choice)
        if not life.open:
            self.settle(life)
            lives = self._on[life.link]
            del lives[life]
            if not lives:
                del self._on[life.link], self._anew[life.link]
        return life.link

    def set_apart(self, life: Life) -> None:
        """Keep its replica for it alone, until it brings something or ends."""
        life.alone = True
        self._apart[life.link] = life

    def is_free(self, link: Link) -> bool:
        """Whether a replica is not set apart."""
        return link not in self._apart

    def any_apart(self, links: Iterable[Link]) -> bool:
        """Whether one of these replicas is set apart."""
        return any(link in self._apart for link in links)

    def serves_apart(self, model: str) -> bool:
        """Whether a replica of a model, by a served name, is set apart."""
        return any(model in link.card.names for link in self._apart)

    def has_pace(self, link: Link, num_tokens: int) -> bool:
        """Whether a replica can compute so many tokens anew beside those that it has to."""
        anew = self._anew.get(link, 0)
        return not anew or anew + num_tokens <= RESUMED_TOKENS
