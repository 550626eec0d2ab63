"""Draws among the most probable tokens in Triton, without sorting the vocabulary.

All that min_p, top_k and top_p ask, and the draw in order of probability itself, are questions of
one kind: which is the least x at which the count, or the weight, of all that is above comes to a
number? They are answered by halving the range of x, over few candidates:

    1  the greatest of every 64 ids and the weight of every chunk     (one pass over the row)
    2  a floor below which nothing can be kept: of the k-th greatest of those greatest, of min_p,
       and for top_p alone of (1 - top_p) / V
    3  the ids above the floor, in any order                           (one pass)
    4  the questions, over those

A row with more than `KEPT` candidates (flat logits) asks its whole self instead: slower, and the
same answer, since weights are integers (see `draw`) and ties are broken by id.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .draw import CHUNK, ONE, share_of, weigh
from .tile import power_of_two

GROUP = 64
KEPT = 4096
BLOCK = 2048

LOWEST = tl.constexpr(0x7F7FFFFF)
"""The key of the least finite number: keys are the bits of -x, so they rise as x falls."""


@triton.jit
def key_of(x):
    """An integer that orders x <= 0 from the top; past `LOWEST` for -inf and NaN."""
    return tl.abs(x).to(tl.int32, bitcast=True)


@triton.jit
def value_of(key):
    return -key.to(tl.float32, bitcast=True)


@triton.jit
def survey_kernel(
    greatest, sums, x, x_row, V, num_chunks, CHUNK: tl.constexpr, GROUP: tl.constexpr
):
    """The greatest of each group and the weight of each chunk; grid (R, chunks)."""
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    token = chunk * CHUNK + tl.arange(0, CHUNK)
    value = tl.load(x + row * x_row + token, mask=token < V, other=float("-inf"))
    place = row * num_chunks + chunk
    tl.store(sums + place, tl.sum(weigh(value), 0))
    groups: tl.constexpr = CHUNK // GROUP
    top = tl.max(tl.reshape(value, [groups, GROUP]), 1)
    tl.store(greatest + place * groups + tl.arange(0, groups), top)


@triton.jit
def floor_kernel(
    floor,
    total,
    count,
    greatest,
    sums,
    least,
    top_k,
    top_p,
    V,
    num_chunks,
    num_groups,
    CHUNKS: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """A floor under what a row may keep, and its whole weight; grid (R,)."""
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, CHUNKS)
    whole = tl.load(sums + row * num_chunks + place, mask=place < num_chunks, other=0)
    weight = tl.sum(whole, 0)
    bound = tl.load(least + row)
    wanted = tl.load(top_k + row).to(tl.int32)
    if wanted > 0:
        group = tl.arange(0, GROUPS)
        inside = group < num_groups
        top = tl.load(greatest + row * num_groups + group, mask=inside, other=float("-inf"))
        key = key_of(top)
        low = 0
        high = 0x7F7FFFFF
        while low < high:
            middle = low + (high - low) // 2
            if tl.sum((key <= middle).to(tl.int32), 0) >= wanted:
                high = middle
            else:
                low = middle + 1
        bound = tl.maximum(bound, value_of(high))
    elif bound == float("-inf"):
        spared = 1 - tl.load(top_p + row)
        bound = tl.log(spared / V * (weight.to(tl.float32) / ONE)) - 1e-3
    tl.store(floor + row, bound)
    tl.store(total + row, weight)
    tl.store(count + row, 0)


@triton.jit
def gather_kernel(values, ids, count, x, floor, x_row, V, CHUNK: tl.constexpr, KEPT: tl.constexpr):
    """The ids of a chunk that reach the floor, behind those of other chunks; grid (R, chunks)."""
    row = tl.program_id(0).to(tl.int64)
    token = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    value = tl.load(x + row * x_row + token, mask=token < V, other=float("-inf"))
    kept = (value >= tl.load(floor + row)) & (value > float("-inf"))
    found = tl.sum(kept.to(tl.int32), 0)
    begin = tl.atomic_add(count + row, found)
    place = begin + tl.cumsum(kept.to(tl.int32), 0) - 1
    kept = kept & (place < KEPT)
    tl.store(values + row * KEPT + place, value, mask=kept)
    tl.store(ids + row * KEPT + place, token, mask=kept)


@triton.jit
def count_upto(source, n, key, BLOCK: tl.constexpr):
    """How many of n values have at most this key."""
    found = tl.zeros([BLOCK], tl.int32)
    for start in range(0, n, BLOCK):
        at = start + tl.arange(0, BLOCK)
        value = tl.load(source + at, mask=at < n, other=float("-inf"))
        found += (key_of(value) <= key).to(tl.int32)
    return tl.sum(found, 0)


@triton.jit
def weight_upto(source, n, key, BLOCK: tl.constexpr):
    """What those of n values weigh that have at most this key."""
    found = tl.zeros([BLOCK], tl.int64)
    for start in range(0, n, BLOCK):
        at = start + tl.arange(0, BLOCK)
        value = tl.load(source + at, mask=at < n, other=float("-inf"))
        found += tl.where(key_of(value) <= key, weigh(value), 0)
    return tl.sum(found, 0)


@triton.jit
def key_reaching(source, n, bound, target, BLOCK: tl.constexpr):
    """The least key, at most `bound`, down to which values weigh at least `target`."""
    low = 0
    high = bound
    while low < high:
        middle = low + (high - low) // 2
        if weight_upto(source, n, middle, BLOCK) >= target:
            high = middle
        else:
            low = middle + 1
    return high


@triton.jit
def nth_id(source, ids, n, compact, key, nth, V, BLOCK: tl.constexpr):
    """Of the values of this key the id of the nth, by ascending id."""
    low = 0
    high = V - 1
    while low < high:
        middle = (low + high) // 2
        found = tl.zeros([BLOCK], tl.int32)
        for start in range(0, n, BLOCK):
            at = start + tl.arange(0, BLOCK)
            value = tl.load(source + at, mask=at < n, other=float("-inf"))
            token = tl.load(ids + at, mask=(at < n) & compact, other=0)
            token = tl.where(compact, token, at)
            found += ((key_of(value) == key) & (token <= middle)).to(tl.int32)
        if tl.sum(found, 0) > nth:
            high = middle
        else:
            low = middle + 1
    return high


@triton.jit
def choose_kernel(
    out,
    x,
    values,
    ids,
    count,
    total,
    u,
    least,
    top_k,
    top_p,
    x_row,
    V,
    KEPT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Cut by min_p, top_k and top_p, and draw; grid (R,)."""
    row = tl.program_id(0).to(tl.int64)
    n = tl.load(count + row)
    compact = n <= KEPT
    source = values + row * KEPT
    if not compact:
        source = x + row * x_row
        n = V
    floor = tl.load(least + row)
    bound = tl.minimum(key_of(floor), 0x7F7FFFFF)
    wanted = tl.load(top_k + row).to(tl.int32)
    weight = tl.load(total + row)
    if wanted > 0:
        low = 0
        high = 0x7F7FFFFF
        while low < high:
            middle = low + (high - low) // 2
            if count_upto(source, n, middle, BLOCK) >= wanted:
                high = middle
            else:
                low = middle + 1
        bound = tl.minimum(bound, high)
    if (wanted > 0) | (floor > float("-inf")):
        weight = weight_upto(source, n, bound, BLOCK)
    share = tl.load(top_p + row)
    if share < 1:
        limit = tl.ceil(share.to(tl.float64) * weight.to(tl.float64)).to(tl.int64)
        limit = tl.maximum(limit, 1)
        bound = key_reaching(source, n, bound, limit, BLOCK)
        above = weight_upto(source, n, bound - 1, BLOCK)
        each = tl.maximum(weigh(value_of(bound)), 1)
        weight = above + (limit - above + each - 1) // each * each
    target = share_of(weight, tl.load(u + row))
    chosen = key_reaching(source, n, bound, target + 1, BLOCK)
    above = weight_upto(source, n, chosen - 1, BLOCK)
    each = tl.maximum(weigh(value_of(chosen)), 1)
    nth = (target - above) // each
    token = nth_id(source, ids + row * KEPT, n, compact, chosen, nth, V, BLOCK)
    tl.store(out + row, token.to(tl.int64))


def draw_cut(
    x: Tensor, u: Tensor, top_k: Tensor, most: int, min_p: Tensor, top_p: Tensor
) -> Tensor:
    return _draw(x, u, top_k, min_p.log(), top_p)


def draw_nucleus(x: Tensor, u: Tensor, top_p: Tensor) -> Tensor:
    none = torch.full_like(top_p, -torch.inf)
    return _draw(x, u, torch.zeros_like(top_p, dtype=torch.int64), none, top_p)


def _draw(x: Tensor, u: Tensor, top_k: Tensor, least: Tensor, top_p: Tensor) -> Tensor:
    num_rows, vocab_size = x.shape

    def room(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(num_rows, *shape, dtype=dtype, device=x.device)

    out = room(dtype=torch.int64)
    if not num_rows:
        return out
    num_chunks = triton.cdiv(vocab_size, CHUNK)
    num_groups = num_chunks * (CHUNK // GROUP)
    greatest = room(num_groups, dtype=torch.float32)
    sums = room(num_chunks, dtype=torch.int64)
    floor, total = room(dtype=torch.float32), room(dtype=torch.int64)
    count = room(dtype=torch.int32)
    values, ids = room(KEPT, dtype=torch.float32), room(KEPT, dtype=torch.int32)
    shape = (x.stride(0), vocab_size)
    survey_kernel[num_rows, num_chunks](
        greatest, sums, x, *shape, num_chunks, CHUNK=CHUNK, GROUP=GROUP, num_warps=8
    )
    floor_kernel[(num_rows,)](
        floor, total, count, greatest, sums, least, top_k, top_p,
        vocab_size, num_chunks, num_groups,
        CHUNKS=power_of_two(num_chunks), GROUPS=power_of_two(num_groups), num_warps=8,
    )  # fmt: skip
    gather_kernel[num_rows, num_chunks](
        values, ids, count, x, floor, *shape, CHUNK=CHUNK, KEPT=KEPT, num_warps=8
    )
    choose_kernel[(num_rows,)](
        out, x, values, ids, count, total, u, least, top_k, top_p, *shape,
        KEPT=KEPT, BLOCK=BLOCK, num_warps=8,
    )  # fmt: skip
    return out
