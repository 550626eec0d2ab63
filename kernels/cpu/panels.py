"""Weights as the CPU ops read them: in panels, packed once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from . import memory
from .structures import Dtype, Format, Matrix, Panels, Pool

DTYPES = {torch.float32: Dtype.F32, torch.bfloat16: Dtype.BF16}
_FORMATS = {torch.float32: Format.F32_PANELS, torch.bfloat16: Format.BF16_PANELS}


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """A packed weight: `panels` points into `data`, which must live as long."""

    data: Tensor
    panels: Panels


def matrix(x: Tensor) -> Matrix:
    """A [rows, columns] tensor, columns side by side, as ops take it; somebody keeps it alive."""
    if x.dim() != 2 or (x.shape[1] > 1 and x.stride(1) != 1):
        raise ValueError(f"rows side by side are wanted, not {tuple(x.shape)} by {x.stride()}")
    return Matrix(x.data_ptr(), x.stride(0), DTYPES[x.dtype])


def pack(
    pool: Pool, weight: Tensor, *, dtype: torch.dtype | None = None, paired: bool = False
) -> Packed:
    """Panels of `weight` [outputs, inputs], float32 or bfloat16, in `dtype` (its own if None).

    `paired`: the first half of the outputs is a gate's and the second what it multiplies.
    """
    outputs, inputs = weight.shape
    dtype = dtype or weight.dtype
    panels = Panels(None, None, inputs, outputs, _FORMATS[dtype], paired)
    data = memory.empty((pool.packed_bytes(panels) // dtype.itemsize,), dtype)
    panels.data = data.data_ptr()
    pool.pack(matrix(weight), panels)
    return Packed(data=data, panels=panels)
