"""Weights as the CPU ops read them: in panels, packed once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from . import memory
from .bindings import Pool, has
from .structures import Dtype, Format, Kind, Matrix, Panels

DTYPES = {torch.float32: Dtype.F32, torch.bfloat16: Dtype.BF16}
EDGE = 32
"""Outputs of a panel; both sizes of a weight are padded to a multiple of it."""

_FORMATS = {torch.float32: Format.F32_PANELS, torch.bfloat16: Format.BF16_PANELS}


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """A packed weight: `panels` points into `data`, which must live as long.

    It stands where the row-major weight would, and tells its shape, dtype and device.
    """

    data: Tensor
    panels: Panels

    @property
    def shape(self) -> torch.Size:
        """[outputs, inputs], not padded."""
        return torch.Size((self.panels.outputs, self.panels.inputs))

    @property
    def dtype(self) -> torch.dtype:
        return self.data.dtype

    @property
    def device(self) -> torch.device:
        return self.data.device

    @property
    def paired(self) -> bool:
        return bool(self.panels.paired)

    @property
    def nbytes(self) -> int:
        """Bytes it takes, padding included."""
        return self.data.nbytes

    def __len__(self) -> int:
        return int(self.panels.outputs)

    def rows(self) -> Tensor:
        """The row-major weight again, a copy."""
        outputs, inputs = self.shape
        if self.dtype is torch.float32:
            found = self.data.view(-1, _padded(inputs), EDGE).transpose(1, 2)
        else:
            tiles = self.data.view(-1, _padded(inputs) // EDGE, 2, 16, 16, 2)
            found = tiles.permute(0, 2, 4, 1, 3, 5)
        found = found.reshape(-1, _padded(inputs))[:, :inputs]
        if self.paired:
            halves = found.reshape(-1, 2, EDGE // 2, inputs).transpose(0, 1).reshape(2, -1, inputs)
            return halves[:, : outputs // 2].reshape(outputs, inputs)
        return found[:outputs].contiguous()


def packs(weight: Tensor) -> bool:
    """Whether the native library takes a weight of this dtype, here or to be."""
    near = weight.device.type in ("cpu", "meta")
    return near and weight.dim() == 2 and weight.dtype in _FORMATS and has(Kind.LINEAR)


def num_bytes(outputs: int, inputs: int, dtype: torch.dtype, *, paired: bool = False) -> int:
    """Bytes that a weight of this shape takes in panels."""
    high = 2 * _padded(outputs // 2, EDGE // 2) if paired else _padded(outputs)
    return _padded(high) * _padded(inputs) * dtype.itemsize


def _padded(size: int, edge: int = EDGE) -> int:
    return -(-size // edge) * edge


def matrix(x: Tensor) -> Matrix:
    """A [rows, columns] tensor, columns side by side, as ops take it; somebody keeps it alive."""
    if x.dim() != 2 or (x.shape[1] > 1 and x.stride(1) != 1):
        raise ValueError(f"rows side by side are wanted, not {tuple(x.shape)} by {x.stride()}")
    return Matrix(x.data_ptr(), x.stride(0), DTYPES[x.dtype])


def pack(
    pool: Pool, weight: Tensor, *, dtype: torch.dtype | None = None, paired: bool = False
) -> Packed:
    """Panels of `weight` [outputs, inputs], float32 or bfloat16, in `dtype` (its own if None).

    `paired`: the first half of the outputs is a gate's and the second what it multiplies. A weight
    on the meta device gives panels without memory.
    """
    outputs, inputs = weight.shape
    dtype = dtype or weight.dtype
    panels = Panels(None, None, inputs, outputs, _FORMATS[dtype], paired)
    if weight.is_meta:
        count = num_bytes(outputs, inputs, dtype, paired=paired) // dtype.itemsize
        return Packed(data=torch.empty(count, dtype=dtype, device="meta"), panels=panels)
    data = memory.empty((pool.packed_bytes(panels) // dtype.itemsize,), dtype)
    panels.data = data.data_ptr()
    pool.pack(matrix(weight), panels)
    return Packed(data=data, panels=panels)
