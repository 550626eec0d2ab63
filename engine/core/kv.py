"""Which blocks hold a sequence's keys and values: match, reserve, publish, release."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from ..executor import Capacity
from ..holdings import Holdings
from ..keys import chained_keys, root_key, told_every
from ..plan import Copy
from ..sequence import Sequence
from .blocks import NULL, Blocks

BlockLists = list[list[int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortage:
    """A sequence for which there were too few free blocks, when the books had `version`.

    `needs`: how many of each group must be free for it. `key`: of the first block that was not
    cached; with it fewer would do.
    """

    seq: Sequence
    version: int
    needs: tuple[int, ...]
    key: bytes | None

    def lasts(self, seq: Sequence, kv: KVManager) -> bool:
        """Whether it is about this sequence, and nothing has happened since that would help it.

        So that a long prompt is not matched anew in every step.
        """
        if seq is not self.seq or kv.version == self.version:
            return seq is self.seq
        if seq.leader is not None:
            return False
        if self.key is not None and any(group.find(self.key) for group in kv.groups):
            return False
        return any(g.num_free < need for g, need in zip(kv.groups, self.needs, strict=True))


class KVManager:
    """Hands out the blocks of every cache group, and finds cached prefixes.

    Blocks are found by their `keys`. A group with a window needs only the blocks inside it: NULL
    stands for those before. `holdings` tells of what can be found: the last key of each stretch of
    blocks, while every group has what it needs of them to go on after it. A group without a window
    forgets the end of a prefix before its beginning, so that its last block stands for all.
    """

    def __init__(self, capacity: Capacity, *, caching: bool) -> None:
        self.block_size = capacity.block_size
        self.caching = caching
        self.groups = [Blocks(num) for num in capacity.num_blocks]
        self.windows = [spec.window for spec in capacity.groups]
        self._windowed = any(self.windows)
        self.holdings = Holdings(told_every(self.block_size))
        self._stretches_of: dict[bytes, list[bytes]] = {}  # of a block inside one, its last keys
        for group, window in zip(self.groups, self.windows, strict=True):
            group.on_forget = self.holdings.lose if window is None else self._lose_stretches
        self.version = 0

    @property
    def usage(self) -> float:
        """Share of the fullest group's blocks that somebody holds, 0 to 1."""
        return max(1 - g.num_free / max(1, g.num_blocks - 1) for g in self.groups)

    def match(self, seq: Sequence) -> int:
        """Take hold of the longest cached beginning of a sequence that has no blocks; the number of
        tokens in it.

        At least one token is left to compute: its logits are needed. So are those of a prompt whose
        log probabilities are not all known yet.
        """
        assert not seq.blocks
        seq.blocks = [[] for _ in self.groups]
        if not self.caching or None in (seq.prompt_logprobs or ())[1:]:
            return 0
        keys = self._keys(seq, (len(seq.tokens) - 1) // self.block_size)
        hits = self._longest(keys)
        for group, window, blocks in zip(self.groups, self.windows, seq.blocks, strict=True):
            first = self._first_needed(hits * self.block_size, window)
            blocks += [NULL] * first
            blocks += [self._found(group, key) for key in keys[first:hits]]
            group.share(blocks)
        seq.published = hits
        return hits * self.block_size

    def reserve(
        self, seq: Sequence, upto: int, spare: int = 0
    ) -> tuple[tuple[int, ...], ...] | None:
        """Grow a sequence's blocks to cover the positions below `upto`: the new blocks of each
        group.

        None, and nothing taken, where some group would be left with fewer than `spare` free blocks.
        """
        total = -(-upto // self.block_size)
        if total <= len(seq.blocks[0]):
            return ()
        wants = [max(0, total - len(blocks)) for blocks in seq.blocks]
        for group, num in zip(self.groups, wants, strict=True):
            if num and group.num_free - num < spare:
                return None
        grown = tuple(tuple(g.take(n)) for g, n in zip(self.groups, wants, strict=True))
        for blocks, new in zip(seq.blocks, grown, strict=True):
            blocks.extend(new)
        return grown

    def give_up(self, seq: Sequence, upto: int, spare: int) -> Shortage:
        """Take back what a sequence holds that `reserve` could not cover, and say what is short."""
        total = -(-upto // self.block_size)
        wants = [max(0, total - len(blocks)) for blocks in seq.blocks]
        lacks = [
            num + spare - group.num_free if num else 0
            for num, group in zip(wants, self.groups, strict=True)
        ]
        first = seq.published
        self.release(self.detach(seq))
        return Shortage(
            seq=seq,
            version=self.version,
            needs=tuple(g.num_free + lack for g, lack in zip(self.groups, lacks, strict=True)),
            key=seq.keys[first] if first < len(seq.keys) else None,
        )

    def publish(self, seq: Sequence) -> None:
        """Make the full blocks that are `written` findable, and let go of those that left their
        window.

        One position more than the next query sees is kept: a sibling recomputes the last prompt
        token.
        """
        full = seq.written // self.block_size
        if full == seq.published and not self._windowed:
            return
        if full > seq.published:
            if self.caching:
                self._announce(seq, full)
            seq.published = full
        for group, window, blocks in zip(self.groups, self.windows, seq.blocks, strict=True):
            if window is not None:
                self._slide(group, blocks, self._first_needed(seq.written - 1, window))

    def fork(self, leader: Sequence, seq: Sequence) -> list[Copy] | None:
        """Give `seq` what its leader has of its first `seq.shared` tokens, and room for one more.

        None where blocks are short, or the leader's window has moved on.

        Full blocks are shared by reference; the block of the next token is the sibling's own, and
        the copies returned bring what the leader has in it.
        """
        whole, rest = divmod(seq.shared, self.block_size)
        for group, window, blocks in zip(self.groups, self.windows, leader.blocks, strict=True):
            end = whole + (rest > 0)
            if not group.num_free or NULL in blocks[self._first_needed(seq.shared, window) : end]:
                return None
        copies = []
        seq.blocks = []
        for index, (group, blocks) in enumerate(zip(self.groups, leader.blocks, strict=True)):
            group.share(blocks[:whole])
            own = group.take(1)
            seq.blocks.append(blocks[:whole] + own)
            if rest:
                copies.append(Copy(index, blocks[whole], own[0]))
        seq.keys = leader.keys[:whole]
        seq.published = whole
        return copies

    def keep(self, blocks: BlockLists, num_tokens: int) -> BlockLists:
        """Hold the blocks of the first `num_tokens` tokens once more; `release` gives them back."""
        num = -(-num_tokens // self.block_size)
        kept = [mine[:num] for mine in blocks]
        for group, mine in zip(self.groups, kept, strict=True):
            group.share(mine)
        return kept

    def detach(self, seq: Sequence) -> BlockLists:
        """Part a sequence from its blocks, which stay held until `release` gives them back."""
        blocks, seq.blocks = seq.blocks, []
        seq.published = 0
        return blocks

    def release(self, lists: BlockLists) -> None:
        """Give back what `detach` returned."""
        for group, blocks in zip(self.groups, lists, strict=False):
            group.give(reversed(blocks))
        self.version += 1

    def verify(self, lists: Iterable[BlockLists]) -> None:
        """Assert that the blocks in `lists` are all that is held."""
        held: list[Counter[int]] = [Counter() for _ in self.groups]
        for blocks in lists:
            for count, mine in zip(held, blocks, strict=False):
                count.update(mine)
        for group, count in zip(self.groups, held, strict=True):
            group.verify(count)

    def _announce(self, seq: Sequence, full: int) -> None:
        keys = self._keys(seq, full)
        for group, blocks in zip(self.groups, seq.blocks, strict=True):
            for position in range(seq.published, full):
                group.publish(blocks[position], keys[position])
        self._tell(keys[:full], seq.published)
        self.version += 1

    def _tell(self, keys: list[bytes], first: int) -> None:
        """Tell of the stretches that end in block `first` or later."""
        every = self.holdings.every
        for end in range(first - first % every + every, len(keys) + 1, every):
            for group, window in zip(self.groups, self.windows, strict=True):
                start = max(end - every, self._first_needed(end * self.block_size, window))
                needed = keys[end - 1 if window is None else start : end]
                if any(group.find(key) is None for key in needed):
                    break
                if window is not None:
                    self._remember(needed)
            else:
                self.holdings.gain(keys[end - 1])

    def _remember(self, stretch: list[bytes]) -> None:
        for key in stretch:
            ends = self._stretches_of.setdefault(key, [])
            if stretch[-1] not in ends:
                ends.append(stretch[-1])

    def _lose_stretches(self, key: bytes) -> None:
        """A group with a window has forgotten a block."""
        for end in self._stretches_of.pop(key, ()):
            self.holdings.lose(end)

    def _keys(self, seq: Sequence, num: int) -> list[bytes]:
        """The keys of the first `num` blocks; each is computed once in a sequence's life."""
        keys, size = seq.keys, self.block_size
        if len(keys) < num:
            parent = keys[-1] if keys else root_key(seq.request.adapter, seq.request.cache_salt)
            keys += chained_keys(parent, seq.tokens[len(keys) * size : num * size], size)
        return keys[:num] if len(keys) > num else keys

    def _longest(self, keys: list[bytes]) -> int:
        """The greatest number of leading blocks that every group can supply."""
        hits, before = len(keys), -1
        while hits != before:
            before = hits
            for group, window in zip(self.groups, self.windows, strict=True):
                hits = self._longest_in(group, window, keys[:hits])
        return hits

    def _longest_in(self, group: Blocks, window: int | None, keys: list[bytes]) -> int:
        if window is None:
            for num, key in enumerate(keys):
                if group.find(key) is None:
                    return num
            return len(keys)
        end = position = len(keys)
        while position > self._first_needed(end * self.block_size, window):
            position -= 1
            if group.find(keys[position]) is None:
                end = position
        return end

    def _first_needed(self, computed: int, window: int | None) -> int:
        """The first block that a query at position `computed` or later can still see."""
        return 0 if window is None else max(0, computed - window + 1) // self.block_size

    def _slide(self, group: Blocks, blocks: list[int], first: int) -> None:
        position = min(first, len(blocks)) - 1
        while position >= 0 and blocks[position] != NULL:
            group.give([blocks[position]])
            blocks[position] = NULL
            position -= 1
            self.version += 1

    def _found(self, group: Blocks, key: bytes) -> int:
        block = group.find(key)
        assert block is not None
        return block
