"""Which prefixes a cache holds, as those who choose among engines must know it."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple


class Change(NamedTuple):
    """Keys that came and keys that went. A key told to have gone may never have been told."""

    gained: list[bytes]
    lost: list[bytes]

    def __bool__(self) -> bool:
        return bool(self.gained or self.lost)


class Holdings:
    """The keys of cached prefixes, one every `every` blocks, and what changed since last asked.

    The scheduler's thread writes. One other may `watch` and then ask for `changes`: what it was
    given first and all changes, in their order, make what is held. Costs nothing but a set until
    somebody watches.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self.keys: set[bytes] = set()
        self._changes: deque[tuple[bytes, bool]] | None = None

    def gain(self, key: bytes) -> None:
        """A prefix with this key can be found from now on."""
        if key not in self.keys:
            self.keys.add(key)
            if self._changes is not None:
                self._changes.append((key, True))

    def lose(self, key: bytes) -> None:
        """A block with this key was given to somebody else; most keys are none of a prefix told."""
        if key in self.keys:
            self.keys.remove(key)
            if self._changes is not None:
                self._changes.append((key, False))

    def watch(self) -> set[bytes]:
        """What is held, from where `changes` go on."""
        self._changes = deque()  # first: a change that both tell of is harmless
        return self.keys.copy()

    def changes(self) -> Change:
        """What has changed since the last call, each key once."""
        assert self._changes is not None, "watch comes first"
        net: dict[bytes, bool] = {}
        while self._changes:
            key, held = self._changes.popleft()
            net[key] = held
        return Change(
            [key for key, held in net.items() if held],
            [key for key, held in net.items() if not held],
        )
