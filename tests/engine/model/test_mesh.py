"""A team of threads in the place of ranks."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from shoal.engine.model.mesh import Mesh, team
from torch import Tensor


def test_alone_a_rank_keeps_what_it_has() -> None:
    mesh, x = Mesh(), torch.ones(2, 3)
    assert (mesh.rank, mesh.size) == (0, 1)
    assert mesh.all_reduce(x) is x and mesh.all_gather(x) is x


@pytest.mark.parametrize("size", [2, 3, 4])
def test_ranks_hold_equal_bits(size: int) -> None:
    parts = [torch.randn(5, 7, generator=torch.Generator().manual_seed(r)) for r in range(size)]

    def rank(mesh: Mesh) -> list[tuple[Tensor, Tensor]]:
        x = parts[mesh.rank]
        return [(mesh.all_reduce(x * step), mesh.all_gather(x * step)) for step in range(1, 20)]

    with ThreadPoolExecutor(size) as threads:
        results = list(threads.map(rank, team(size)))
    for step, rounds in enumerate(zip(*results, strict=True), 1):
        for total, joined in rounds:
            assert torch.equal(total, rounds[0][0])
            assert torch.allclose(total, sum(parts[1:], parts[0]) * step, atol=1e-4)
            assert torch.equal(joined, torch.cat(parts, -1) * step)


def test_a_missing_rank_breaks_the_others() -> None:
    with pytest.raises(threading.BrokenBarrierError):
        team(2, timeout_s=0.05)[0].all_reduce(torch.ones(1))
