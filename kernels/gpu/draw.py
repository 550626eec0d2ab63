"""Keyed draws in Triton: the uniform number of a draw, and a token by its probability.

Probabilities are counted in integers, 2**40 to the row's most probable token: sums of them are
exact in any order, so a draw is the same however the vocabulary was cut. The contracts are in
`ops`; `sampling` says the same in floating point.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tile import power_of_two

CHUNK = 4096
"""Ids that one program weighs."""

ONE = tl.constexpr(1 << 40)


@triton.jit
def weigh(x):
    """exp(x) of x <= 0, in integers; nothing for what is not a number."""
    return tl.where(x <= 0, tl.exp(x) * ONE, 0.0).to(tl.int64)


@triton.jit
def share_of(total, u):
    """The integer below `total` that u of [0, 1) points at; 0 where there is no total."""
    found = (total.to(tl.float64) * u).to(tl.int64)
    return tl.maximum(tl.minimum(found, total - 1), 0)


@triton.jit(do_not_specialize=["count"])
def uniform_kernel(out, key, position, sibling, count, DRAW: tl.constexpr, BLOCK: tl.constexpr):
    """Philox4x32-10: counter (position, draw, sibling, 0); two words give 53 bits."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = row < count
    seed = tl.load(key + row, mask=inside, other=0).to(tl.uint64)
    k0 = (seed & 0xFFFFFFFF).to(tl.uint32)
    k1 = (seed >> 32).to(tl.uint32)
    c0 = tl.load(position + row, mask=inside, other=0).to(tl.uint32)
    c1 = tl.full([BLOCK], DRAW, tl.uint32)
    c2 = tl.load(sibling + row, mask=inside, other=0).to(tl.uint32)
    c3 = tl.zeros([BLOCK], tl.uint32)
    a = tl.full([BLOCK], 0xD2511F53, tl.uint32)
    b = tl.full([BLOCK], 0xCD9E8D57, tl.uint32)
    for _ in tl.static_range(10):
        even, odd = c0, c2
        c0 = tl.umulhi(b, odd) ^ c1 ^ k0
        c2 = tl.umulhi(a, even) ^ c3 ^ k1
        c1 = b * odd
        c3 = a * even
        k0 += tl.full([BLOCK], 0x9E3779B9, tl.uint32)
        k1 += tl.full([BLOCK], 0xBB67AE85, tl.uint32)
    bits = (c0 >> 5).to(tl.int64) * 67108864 + (c1 >> 6).to(tl.int64)
    tl.store(out + row, bits.to(tl.float64) * 1.1102230246251565e-16, mask=inside)


@triton.jit
def weigh_kernel(sums, x, x_row, V, num_chunks, CHUNK: tl.constexpr):
    """The weight of each chunk of a row; grid (R, chunks)."""
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    token = chunk * CHUNK + tl.arange(0, CHUNK)
    value = tl.load(x + row * x_row + token, mask=token < V, other=float("-inf"))
    tl.store(sums + row * num_chunks + chunk, tl.sum(weigh(value), 0))


@triton.jit
def draw_any_kernel(
    out, x, u, sums, x_row, V, num_chunks, CHUNK: tl.constexpr, CHUNKS: tl.constexpr
):
    """The first token whose cumulative weight exceeds u's share of the whole; grid (R,)."""
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, CHUNKS)
    part = tl.load(sums + row * num_chunks + place, mask=place < num_chunks, other=0)
    upto = tl.cumsum(part, 0)
    target = share_of(tl.sum(part, 0), tl.load(u + row))
    chunk = tl.minimum(tl.sum((upto <= target).to(tl.int32), 0), num_chunks - 1)
    target -= tl.sum(tl.where(place < chunk, part, 0), 0)
    token = chunk * CHUNK + tl.arange(0, CHUNK)
    value = tl.load(x + row * x_row + token, mask=token < V, other=float("-inf"))
    inner = tl.cumsum(weigh(value), 0)
    found = chunk * CHUNK + tl.sum((inner <= target).to(tl.int32), 0)
    tl.store(out + row, tl.minimum(found, V - 1).to(tl.int64))


def keyed_uniform(key: Tensor, position: Tensor, sibling: Tensor, draw: int = 0) -> Tensor:
    out = torch.empty(len(key), dtype=torch.float64, device=key.device)
    if len(key):
        grid = (triton.cdiv(len(key), 128),)
        uniform_kernel[grid](out, key, position, sibling, len(key), DRAW=draw, BLOCK=128)
    return out


def weights(x: Tensor) -> Tensor:
    """[R, chunks] int64: what each chunk of a row weighs."""
    num_chunks = triton.cdiv(x.shape[1], CHUNK)
    sums = torch.empty(len(x), num_chunks, dtype=torch.int64, device=x.device)
    weigh_kernel[len(x), num_chunks](
        sums, x, x.stride(0), x.shape[1], num_chunks, CHUNK=CHUNK, num_warps=8
    )
    return sums


def draw_any(x: Tensor, u: Tensor) -> Tensor:
    out = torch.empty(len(x), dtype=torch.int64, device=x.device)
    if len(x):
        sums = weights(x)
        num_chunks = sums.shape[1]
        draw_any_kernel[(len(x),)](
            out,
            x,
            u,
            sums,
            x.stride(0),
            x.shape[1],
            num_chunks,
            CHUNK=CHUNK,
            CHUNKS=power_of_two(num_chunks),
            num_warps=8,
        )
    return out
