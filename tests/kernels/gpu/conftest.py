"""Triton's interpreter where there is no GPU; on a GPU the same tests run compiled."""

from __future__ import annotations

import os

import pytest
import torch
from shoal.kernels.gpu.family import Family, family

torch.set_num_threads(1)


@pytest.fixture(
    params=[
        pytest.param("cpu", id="interpreted"),
        pytest.param("cuda", id="compiled", marks=pytest.mark.gpu),
    ]
)
def device(request: pytest.FixtureRequest) -> torch.device:
    if request.param == "cpu" and torch.cuda.is_available():
        pytest.skip("with a GPU the kernels are compiled")
    if request.param == "cuda" and os.environ.get("TRITON_INTERPRET") == "1":
        pytest.fail("there is a GPU, and TRITON_INTERPRET=1 has its kernels interpreted: unset it")
    return torch.device(request.param)


@pytest.fixture(params=Family, ids=lambda kind: kind.name)
def kind(
    request: pytest.FixtureRequest, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> Family:
    """Each family in turn, whose tiles are then taken; on a GPU those that it has room for."""
    found: Family = request.param
    largest_first = list(Family)
    if device.type == "cuda" and largest_first.index(found) < largest_first.index(family(device)):
        pytest.skip(f"tiles of {found.name} are too large for this GPU")
    for module in ("attention", "linear"):
        monkeypatch.setattr(f"shoal.kernels.gpu.{module}.family", lambda device: found)
    return found
