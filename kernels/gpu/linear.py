"""The product of `ops.linear` with one order of additions for every batch.

cuBLAS chooses a kernel by the shape of the whole product, so that a row's bits change with its
company. Here K is cut into parts of fixed length; each is added up in tiles of one size and the
parts are added in order, by the same programs where there are few rows (a program a part, added up
by a second kernel) and by one program that walks over them where there are many.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .family import Family, family
from .tile import product

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
PART = 1024
"""Columns of K that one sum runs over."""
FEW_ROWS = 128
"""Up to so many rows the parts of K are computed at once."""


class Tiles(NamedTuple):
    """Rows of x, rows of the weight, columns of both; warps, and loads in flight."""

    m: int
    n: int
    k: int
    warps: int
    stages: int


TABLE = {
    Family.HOPPER: Tiles(64, 64, 64, 4, 4),
    Family.AMPERE: Tiles(64, 64, 64, 4, 3),
    Family.SAFE: Tiles(64, 64, 32, 4, 3),
    Family.OLD: Tiles(16, 32, 32, 4, 1),
}
WIDE = TABLE[Family.OLD]


@triton.jit(do_not_specialize=["num_rows", "out_part"])
def linear_kernel(
    out,
    x,
    weight,
    bias,
    num_rows,
    width,
    size,
    x_row,
    weight_row,
    out_row,
    out_part,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PART: tl.constexpr,
    WHOLE: tl.constexpr,
    BIAS: tl.constexpr,
):
    """A tile of the product; grid (rows, columns, parts). WHOLE: all parts in turn, else one."""
    row = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    column = (tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    step = tl.arange(0, BLOCK_K)
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    first = tl.program_id(2)
    last = first + 1
    if WHOLE:
        first = 0
        last = tl.cdiv(size, PART)
    for part in range(first, last):
        partial = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for start in range(part * PART, tl.minimum((part + 1) * PART, size), BLOCK_K):
            at = start + step
            a = tl.load(
                x + row[:, None] * x_row + at[None, :],
                mask=(row < num_rows)[:, None] & (at < size)[None, :],
                other=0.0,
            )
            b = tl.load(
                weight + column[None, :] * weight_row + at[:, None],
                mask=(column < width)[None, :] & (at < size)[:, None],
                other=0.0,
            )
            partial = product(a, b, partial)
        total += partial
    inside = (row < num_rows)[:, None] & (column < width)[None, :]
    if BIAS:
        total += tl.load(bias + column, mask=column < width, other=0.0).to(tl.float32)[None, :]
    goal = out + row[:, None] * out_row + column[None, :]
    if not WHOLE:
        goal += tl.program_id(2).to(tl.int64) * out_part
    tl.store(goal, total.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["count"])
def add_parts_kernel(
    out, parts, bias, count, width, num_parts, BLOCK: tl.constexpr, BIAS: tl.constexpr
):
    """Add the parts [num_parts, rows, width] in order, then the bias, as `linear_kernel` does."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    total = tl.zeros([BLOCK], tl.float32)
    for part in range(num_parts):
        total += tl.load(parts + part * count + place, mask=inside, other=0.0)
    if BIAS:
        total += tl.load(bias + place % width, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + place, total.to(out.dtype.element_ty), mask=inside)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    num_rows, size = x.shape
    width = len(weight)
    out = x.new_empty(num_rows, width)
    if not out.numel():
        return out
    tiles = WIDE if x.dtype is torch.float32 else TABLE[family(x.device)]
    num_parts = triton.cdiv(size, PART)
    whole = num_rows > FEW_ROWS or num_parts < 2
    goal = out
    if not whole:
        goal = x.new_empty(num_parts, num_rows, width, dtype=torch.float32)
    linear_kernel[
        triton.cdiv(num_rows, tiles.m), triton.cdiv(width, tiles.n), 1 if whole else num_parts
    ](
        goal,
        x,
        weight,
        weight if bias is None else bias,
        num_rows,
        width,
        size,
        x.stride(0),
        weight.stride(0),
        width,
        num_rows * width,
        BLOCK_M=tiles.m,
        BLOCK_N=tiles.n,
        BLOCK_K=tiles.k,
        PART=PART,
        WHOLE=whole,
        BIAS=whole and bias is not None,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
    if not whole:
        block = 1024
        add_parts_kernel[(triton.cdiv(out.numel(), block),)](
            out,
            goal,
            weight if bias is None else bias,
            out.numel(),
            width,
            num_parts,
            BLOCK=block,
            BIAS=bias is not None,
            num_warps=4,
        )
    return out
