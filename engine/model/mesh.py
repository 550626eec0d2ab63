"""What one rank holds of a model: a slice of each layer's width, and a stage of its depth."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ...kernels import ops


def _same(x: Tensor) -> Tensor:
    return x


class Stage(NamedTuple):
    """A pipeline stage: consecutive layers, behind the embedding where it is the first and before
    the last norm and the head where it is the last.
    """

    layers: range
    first: bool = True
    last: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Mesh:
    """Rank `rank` of the `size` ranks that share each layer; alone by default.

    `all_reduce(x)` is the sum of every rank's x, added in the order of ranks, so that all ranks
    hold equal bits; it may use x's memory. `all_gather(x)` joins them along the last dimension.
    `broadcast(x)` is rank 0's x; the others give one of its shape and dtype. Every rank calls them
    in the same order with equal shapes.
    """

    rank: int = 0
    size: int = 1
    all_reduce: Callable[[Tensor], Tensor] = _same
    all_gather: Callable[[Tensor], Tensor] = _same
    broadcast: Callable[[Tensor], Tensor] = _same


def team(size: int, timeout_s: float = 60.0) -> list[Mesh]:
    """Meshes for `size` threads of this process.

    A rank that misses a collective for `timeout_s` breaks it for all: they raise
    threading.BrokenBarrierError.
    """
    barrier = threading.Barrier(size, timeout=timeout_s)
    shared: list[Tensor | None] = [None] * size

    def exchange(rank: int, x: Tensor, join: Callable[[list[Tensor]], Tensor]) -> Tensor:
        shared[rank] = x
        barrier.wait()
        joined = join([part for part in shared if part is not None])
        barrier.wait()
        return joined

    def mesh(rank: int) -> Mesh:
        return Mesh(
            rank=rank,
            size=size,
            all_reduce=partial(ops.across, lambda x: exchange(rank, x, _sum)),
            all_gather=lambda x: exchange(rank, x, lambda parts: torch.cat(parts, -1)),
            broadcast=lambda x: exchange(rank, x, lambda parts: parts[0].clone()),
        )

    return [mesh(rank) for rank in range(size)]


def _sum(parts: list[Tensor]) -> Tensor:
    total = parts[0].clone()
    for part in parts[1:]:
        total += part
    return total
