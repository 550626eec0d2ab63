"""Runs of single ops over tensors."""

from __future__ import annotations

import ctypes
from functools import cache

import torch
from shoal.kernels.cpu import bindings
from shoal.kernels.cpu.bindings import Pool
from shoal.kernels.cpu.structures import Dtype, Kind, Matrix, Sizes, Step, step
from torch import Tensor


@cache
def _pool(native: int, threads: int) -> Pool:
    return Pool(threads)


def pool(threads: int) -> Pool:
    """Threads of the library that a test runs on."""
    return _pool(id(bindings.loaded()), threads)


def dtype_of(x: Tensor) -> Dtype:
    return {torch.float32: Dtype.F32, torch.bfloat16: Dtype.BF16}[x.dtype]


def matrix(x: Tensor | None) -> Matrix:
    """A matrix [rows, ...], its rows packed."""
    if x is None:
        return Matrix(None, 0, 0)
    return Matrix(x.data_ptr(), x.stride(0), dtype_of(x))


def run(
    kind: Kind,
    args: ctypes.Structure,
    *,
    tokens: int = 0,
    wanted: int = 0,
    sequences: int = 0,
    threads: int = 2,
) -> None:
    steps = (Step * 1)(step(kind, args))
    assert pool(threads).run(steps, Sizes(tokens, wanted, sequences)) == 0


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(dtype)
