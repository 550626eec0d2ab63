"""A configuration that replaces another on a Ray that runs; the model alone is scripted."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from served import HERE, Served, descendants, gone, wait
from shoal.cluster.launch import import_path
from shoal.cluster.ports import free_port

CLUSTER = """
import ray, sys
here = ray.init(num_cpus=2, include_dashboard=False, object_store_memory=10**8)
print(here.address_info["gcs_address"], flush=True)
sys.stdin.read()
"""


@pytest.fixture
def ray_address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    path = os.pathsep.join([str(HERE), import_path()])
    process = subprocess.Popen(
        [sys.executable, "-c", CLUSTER],
        env={k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {"PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield next(line for line in process.stdout if ":" in line).strip()
    finally:
        pids = descendants(process.pid)
        process.communicate("", timeout=60)
        wait(lambda: gone(pids))


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
