"""Batches over a paged cache, drawn from a seed."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Shape:
    """`queries[b]` of `keys[b]` tokens are new; `tail` rows of q belong to no sequence."""

    heads: int = 4
    kv_heads: int = 2
    size: int = 64
    page: int = 16
    queries: tuple[int, ...] = (1,)
    keys: tuple[int, ...] = (5,)
    window: int | None = None
    softcap: float | None = None
    alibi: bool = False
    tail: int = 0
    options: dict[str, Any] = field(default_factory=dict)


def make(
    shape: Shape, dtype: torch.dtype, device: torch.device
) -> tuple[list[Tensor], dict[str, Any]]:
    """What `paged_attention` takes. The cache is NaN wherever no query may look."""
    random = torch.Generator().manual_seed(hash((shape.queries, shape.keys, shape.size)) % 2**31)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=random).to(dtype)

    pages = [-(-count // shape.page) for count in shape.keys]
    num_blocks = sum(pages) + 2
    kv = torch.full((2, num_blocks, shape.page, shape.kv_heads, shape.size), torch.nan, dtype=dtype)
    table = torch.full((len(pages), max(pages, default=0) + 1), num_blocks + 99, dtype=torch.int32)
    free = iter((torch.randperm(num_blocks - 1, generator=random) + 1).tolist())
    for row, (new, length) in enumerate(zip(shape.queries, shape.keys, strict=True)):
        first = 0 if shape.window is None else max(0, length - new + 1 - shape.window)
        for page in range(pages[row]):
            table[row, page] = block = next(free)
            begin = max(first - page * shape.page, 0)
            end = min(length - page * shape.page, shape.page)
            if begin < end:
                kv[:, block, begin:end] = draw(2, end - begin, shape.kv_heads, shape.size)
    rows = sum(shape.queries) + shape.tail
    q = draw(rows, shape.heads + 3, shape.size)[:, : shape.heads]
    starts = torch.tensor(list(accumulate(shape.queries, initial=0)), dtype=torch.int32)
    lengths = torch.tensor(shape.keys, dtype=torch.int32)
    alibi = None
    if shape.alibi:
        alibi = torch.randn(shape.heads, max(shape.keys) + 3, generator=random).to(device)
    tensors = [t.to(device) for t in (q, kv, table, starts, lengths)]
    named = {"window": shape.window, "softcap": shape.softcap, "alibi": alibi}
    return tensors, {"scale": shape.size**-0.5, **named}
