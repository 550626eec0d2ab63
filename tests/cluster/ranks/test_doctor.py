"""What the doctor says of ranks and of the model that they would share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from shoal.cluster.doctor import checks
from shoal.cluster.nodes import alive
from shoal.engine.config import EngineConfig


@pytest.fixture
def probes(ray_here: None) -> Iterator[checks.Probes]:
    probes = checks.start_probes(alive())
    yield probes
    for probe in probes.values():
        ray.kill(probe, no_restart=True)


def test_a_model_that_ranks_cannot_share_is_named(
    probes: checks.Probes, uneven_model: Path, tmp_path: Path
) -> None:
    for size, level in ((1, "ok"), (4, "ok"), (3, "failure")):
        config = EngineConfig(model=str(uneven_model), tensor_parallel_size=size)
        (found,) = checks.checkpoints(probes, config)
        assert found.level == level
    assert "tensor_parallel_size=3 cannot cut the model's 4 q_proj heads" in found.words
    tmp_path.joinpath("config.json").write_text("{")
    (found,) = checks.checkpoints(probes, EngineConfig(model=str(tmp_path), tensor_parallel_size=3))
    assert found.level == "ok"
