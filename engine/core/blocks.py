"""The blocks of one cache group.

Who holds them, what they are known to contain, which is reused next.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable

NULL = 0
"""The block that stands for "none": never handed out, may be written to by padding."""


class Blocks:
    """Ids 1 .. num_blocks - 1 with reference counts.

    A block with no holder is free, and keeps its content and key until it is taken again: the least
    recently freed goes first, one without a key before all others. `on_forget` is told the key
    that a block had.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.holders = [0] * num_blocks
        self.on_forget: Callable[[bytes], None] | None = None
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(1, num_blocks))
        self._key_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}

    @property
    def num_free(self) -> int:
        """How many blocks `take` could hand out."""
        return len(self._free)

    def take(self, num: int) -> list[int]:
        """Hand out `num` free blocks, one holder each; what they contained is forgotten."""
        assert num <= len(self._free), f"{num} blocks wanted, {len(self._free)} free"
        taken = [self._free.popitem(last=False)[0] for _ in range(num)]
        for block in taken:
            self.holders[block] = 1
            if (key := self._key_of.pop(block, None)) is not None:
                del self._block_of[key]
                if self.on_forget is not None:
                    self.on_forget(key)
        return taken

    def share(self, blocks: Iterable[int]) -> None:
        """Add a holder to each block; null blocks are passed over."""
        for block in blocks:
            if block != NULL:
                if not self.holders[block]:
                    del self._free[block]
                self.holders[block] += 1

    def give(self, blocks: Iterable[int]) -> None:
        """Take a holder from each block; null blocks are passed over.

        Give a sequence's blocks last one first: the end of a prompt is less likely to be met again
        than its beginning.
        """
        for block in blocks:
            if block == NULL:
                continue
            assert self.holders[block] > 0, f"block {block} given back twice"
            self.holders[block] -= 1
            if not self.holders[block]:
                self._free[block] = None
                if block not in self._key_of:
                    self._free.move_to_end(block, last=False)

    def find(self, key: bytes) -> int | None:
        """The block known to contain what `key` stands for."""
        return self._block_of.get(key)

    def publish(self, block: int, key: bytes) -> None:
        """Make a held block findable.

        Where another block that somebody holds has the same content already, that one stays; a free
        one gives way, or it would be forgotten before the blocks that follow the new one.
        """
        if block == NULL or block in self._key_of:
            return
        other = self._block_of.get(key)
        if other is not None:
            if self.holders[other]:
                return
            del self._key_of[other]
            self._free.move_to_end(other, last=False)
        self._key_of[block] = key
        self._block_of[key] = block

    def verify(self, held: dict[int, int]) -> None:
        """Assert that exactly the blocks in `held` (block to number of holders) are held."""
        for block in range(1, self.num_blocks):
            assert self.holders[block] == held.get(block, 0), f"block {block}: wrong holders"
            assert (block in self._free) == (self.holders[block] == 0), f"block {block}: list"
        assert self._block_of == {key: block for block, key in self._key_of.items()}
