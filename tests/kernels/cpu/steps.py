"""Runs of single ops over tensors, on each instruction set that this machine has."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from shoal.kernels.cpu.structures import Dtype, Kind, Matrix, Pool, Sizes, Step, library, step
from torch import Tensor

NAMES = ("amx", "avx512bf16", "avx512", "avx2")


def native() -> ctypes.CDLL:
    found = library()
    assert found is not None, "the native library is not built: python kernels/cpu/build.py"
    return found


def available() -> list[str]:
    """The instruction sets of this machine, the one that is chosen without a word first."""
    with chosen(None):
        return [name for name in NAMES if native().shoal_choose(name.encode())]


@contextmanager
def chosen(name: str | None) -> Iterator[None]:
    before = native().shoal_instructions()
    try:
        assert name is None or native().shoal_choose(name.encode())
        yield
    finally:
        native().shoal_choose(before)


@cache
def pool(threads: int) -> Pool:
    return Pool(threads)


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
