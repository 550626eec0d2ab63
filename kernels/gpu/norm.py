"""Norms in Triton, alone or with the residual added first. The contracts are in `ops`.

A program takes a few whole rows. How a row is added up depends on its length alone.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tile import power_of_two

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ELEMENTS = 4096
"""What a program takes at least: several short rows (heads), or one long one."""


@triton.jit(do_not_specialize=["num_rows"])
def norm_kernel(
    out,
    x,
    residual,
    weight,
    bias,
    num_rows,
    inner,
    x_outer,
    x_inner,
    residual_row,
    eps,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ROWS: tl.constexpr,
    ADD: tl.constexpr,
    CENTRE: tl.constexpr,
):
    """Rows of x, row r at (r // inner) * x_outer + (r % inner) * x_inner; out is packed.

    ADD: residual += x, and the norm of that. CENTRE: LayerNorm, else RMSNorm.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK_C)
    inside = (row < num_rows)[:, None] & (column < C)[None, :]
    place = (row // inner) * x_outer + (row % inner) * x_inner
    value = tl.load(x + place[:, None] + column[None, :], mask=inside, other=0.0)
    if ADD:
        own = residual + row[:, None] * residual_row + column[None, :]
        value = (tl.load(own, mask=inside, other=0.0).to(tl.float32) + value.to(tl.float32)).to(
            out.dtype.element_ty
        )
        tl.store(own, value, mask=inside)
    wide = value.to(tl.float32)
    scale = tl.load(weight + column, mask=column < C, other=0.0).to(tl.float32)[None, :]
    if CENTRE:
        mean = tl.sum(wide, 1) / C
        wide = tl.where(inside, wide - mean[:, None], 0.0)
        shift = tl.load(bias + column, mask=column < C, other=0.0).to(tl.float32)[None, :]
        variance = tl.sum(wide * wide, 1) / C
        found = wide * (1 / tl.sqrt_rn(variance + eps))[:, None] * scale + shift
    else:
        variance = tl.sum(wide * wide, 1) / C
        normed = (wide * (1 / tl.sqrt_rn(variance + eps))[:, None]).to(out.dtype.element_ty)
        found = normed.to(tl.float32) * scale
    goal = out + row[:, None] * C + column[None, :]
    tl.store(goal, found.to(out.dtype.element_ty), mask=inside)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return _norm(x, None, weight, None, eps)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    return _norm(x, residual, weight, None, eps)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return _norm(x, None, weight, bias, eps)


def add_layer_norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return _norm(x, residual, weight, bias, eps)


def _norm(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float
) -> Tensor:
    size = x.shape[-1]
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    num_rows = x.numel() // max(size, 1)
    if not num_rows:
        return out
    if x.dim() != 3:
        x = x.reshape(-1, 1, size)
    block = power_of_two(size)
    rows = max(1, ELEMENTS // block)
    norm_kernel[(triton.cdiv(num_rows, rows),)](
        out,
        x,
        out if residual is None else residual,
        weight,
        weight if bias is None else bias,
        num_rows,
        x.shape[1],
        x.stride(0),
        x.stride(1),
        0 if residual is None else residual.stride(0),
        eps,
        C=size,
        BLOCK_C=block,
        ROWS=rows,
        ADD=residual is not None,
        CENTRE=bias is not None,
        num_warps=8 if block >= ELEMENTS else 4,
    )
    return out
