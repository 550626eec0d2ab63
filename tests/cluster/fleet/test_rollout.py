"""A configuration that replaces another on a Ray that runs; the model alone is scripted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from served import Served, ray_cluster
from shoal.cluster.ports import free_port


@pytest.fixture
def ray_address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with ray_cluster(num_cpus=2) as addresses:
        yield addresses["gcs_address"]


def test_a_changed_configuration_rolls_and_its_driver_takes_over(
    ray_address: str, tmp_path: Path
) -> None:
    keys = {"port": free_port(), "ray_address": ray_address, "served_model_name": "counter"}
    started = []
    try:
        for name, seqs in (("first", 8), ("second", 16)):
            folder = tmp_path / name
            folder.mkdir()
            started.append(Served(folder, **keys, max_num_seqs=seqs))
            started[-1].wait_started()
            if name == "first":
                stream = started[0].stream(4000)
        first, second = started
        assert "roll to this configuration" in second.said()
        assert stream.numbers() == [str(i) for i in range(4000)]
        new = second.stream(3)
        assert new.replica != stream.replica and new.numbers() == ["0", "1", "2"]
        assert first.process.wait(60) == 0
        assert "has taken shoal over" in first.said()
        assert second.stream(3).numbers() == ["0", "1", "2"]
        second.process.terminate()
        assert second.process.wait(60) == 0
    finally:
        for served in started:
            served.process.kill()
            served.process.wait()
