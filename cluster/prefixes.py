"""Which replica holds which prefixes, by what the replicas themselves have told.

A replica names the keys of the prefixes in its cache, one every 128 tokens or so: all when a
gateway connects, from then on what came and went. A gateway that hashes a prompt in the same way
reads off how much of it each replica would not have to compute: up to the first key that is not
held. Where every layer has a window, or some forget what left it, the beginning may be gone: up to
the last key before which as many are held in a row as the window is long.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from functools import reduce
from operator import or_

from ..engine.keys import chained_keys, root_key, told_every
from ..engine.request import Request
from .link import ModelCard


class PrefixIndex:
    """Key to the replicas that hold it, one bit each. Used on one event loop."""

    def __init__(self) -> None:
        self._holders: dict[bytes, int] = {}
        self._keys_of: dict[str, set[bytes]] = {}
        self._bit_of: dict[str, int] = {}

    @property
    def num_keys(self) -> int:
        """Keys that anybody holds."""
        return len(self._holders)

    def update(self, replica: str, gained: Iterable[bytes], lost: Iterable[bytes]) -> None:
        """Enter what has changed at a replica; what it told before is as it was."""
        bit = self._bit_of.get(replica) or self._enter(replica)
        keys, holders = self._keys_of[replica], self._holders
        for key in gained:
            keys.add(key)
            holders[key] = holders.get(key, 0) | bit
        for key in lost:
            if key in keys:
                keys.remove(key)
                self._clear(key, bit)

    def forget(self, replica: str) -> None:
        """Drop all that a replica has told, as when it is out of reach."""
        bit = self._bit_of.pop(replica, 0)
        for key in self._keys_of.pop(replica, ()):
            self._clear(key, bit)

    def cached(
        self, request: Request, block_size: int, replicas: Collection[str], window: int = 0
    ) -> dict[str, int]:
        """How many tokens of a request each of the replicas holds, as far as it has told.

        `window`: the longest that any layer has, in tokens; 0 where none forgets.
        """
        width = told_every(block_size) * block_size if block_size else 0
        row = -(-(window - 1) // width) if window and width else 0
        held = self.lengths(told_keys(request, block_size), replicas, row)
        return {replica: width * num for replica, num in held.items()}

    def held_by(self, replica: str, request: Request, card: ModelCard) -> int:
        """How many tokens of a request a replica holds, as `cached`."""
        return self.cached(request, card.block_size, [replica], card.window)[replica]

    def lengths(
        self, keys: Iterable[bytes], replicas: Collection[str], row: int = 0
    ) -> dict[str, int]:
        """How many of a prompt's first `keys` each of the replicas can use, in one walk: all up to
        there must be held, or where `row` is not 0, so many before it.
        """
        held = dict.fromkeys(replicas, 0)
        name_of = {self._bit_of[name]: name for name in held if name in self._bit_of}
        first = dict.fromkeys(name_of, 0)  # of the row that goes on
        asked = going = reduce(or_, name_of, 0)
        num = 0

        def end(bits: int) -> None:
            for bit in _each_bit(bits):
                if first[bit] == 0 or (row and num - first[bit] >= row):
                    held[name_of[bit]] = num

        for key in keys:
            there = asked & self._holders.get(key, 0)
            if there != going:
                end(going & ~there)
                first.update((bit, num) for bit in _each_bit(there & ~going))
                asked = asked if row else there
                going = there
            if not asked:
                break
            num += 1
        end(going)
        return held

    def _enter(self, replica: str) -> int:
        """A bit that is nobody's yet."""
        taken = reduce(or_, self._bit_of.values(), 0)
        free = ~taken & (taken + 1)
        self._bit_of[replica] = free
        self._keys_of[replica] = set()
        return free

    def _clear(self, key: bytes, bit: int) -> None:
        left = self._holders[key] & ~bit
        if left:
            self._holders[key] = left
        else:
            del self._holders[key]


def _each_bit(bits: int) -> Iterator[int]:
    while bits:
        lowest = bits & -bits
        yield lowest
        bits ^= lowest


def prompt_keys(
    prompt: tuple[int, ...], block_size: int, adapter: str | None = None, salt: str = ""
) -> tuple[bytes, ...]:
    """The keys of a prompt's full blocks, hashed once for the choice and for the engine."""
    return tuple(chained_keys(root_key(adapter, salt), prompt, block_size)) if block_size else ()


def told_keys(request: Request, block_size: int) -> tuple[bytes, ...]:
    """Those of a request's keys that a replica would tell of, if it had them.

    At least one token of a prompt is computed, and all where each is to be scored.
    """
    if not block_size or request.params.prompt_logprobs is not None:
        return ()
    usable = (len(request.prompt) + len(request.emitted) - 1) // block_size
    every = told_every(block_size)
    return request.keys[every - 1 : usable : every]
