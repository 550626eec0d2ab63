"""Triton's interpreter where there is no GPU; on a GPU the same tests run compiled."""

from __future__ import annotations

import pytest
import torch

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
    return torch.device(request.param)
