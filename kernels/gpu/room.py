"""The room that attention takes on a GPU beside its results, known before a weight is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

WORKSPACE_BYTES = 128 << 20
"""What FlashInfer asks for at least."""
ROWS, BLOCKS = 128, 2
"""FlashInfer's tiles have up to so many rows, and each processor has so many of them at once."""


class Room(NamedTuple):
    """Bytes: of a sequence's partial sums, `of_split` for each split of its keys; `fixed` once."""

    of_split: int = 0
    fixed: int = 0


NONE = Room()


def room(attention: str, heads: int, pages: Sequence[tuple[int, int]], num_processors: int) -> Room:
    """What a backend takes for so many query heads; `pages`: key-value heads and their size, of
    each kind of layer.
    """
    if attention == "triton":
        return Room(of_split=max(heads * (size + 2) * 4 for _, size in pages))
    if attention == "FLASHINFER":
        each = (workspace_bytes(heads, *kind, num_processors) for kind in pages)
        return Room(fixed=sum(each))
    return NONE


def num_splits(num_keys: int) -> int:
    """How many splits that many keys have, at least 1; by `split_of` in `attention_kernels`."""
    key = max(num_keys - 1, 0)
    if key < 4096:
        return key // 256 + 1
    return (16 + (key - 4096) // 1024 if key < 32768 else 44 + (key - 32768) // 4096) + 1


def workspace_bytes(heads: int, kv_heads: int, head_size: int, num_processors: int) -> int:
    """FlashInfer's partial sums where it cuts keys into pieces: as many tiles, each of all heads in
    float32 with a weight a row, as keep every processor busy.
    """
    tiles = BLOCKS * num_processors // kv_heads
    return max(WORKSPACE_BYTES, heads * tiles * ROWS * (head_size + 1) * 4)
