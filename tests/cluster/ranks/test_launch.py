"""A Ray of our own: what runs of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray._private import worker
from shoal.cluster.processes import holding


def commands(folder: Path) -> Iterator[str]:
    for pid in holding(folder):
        with contextlib.suppress(OSError):  # a worker of another test may just end
            yield Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


@pytest.mark.usefixtures("ray_here")
def test_nothing_runs_that_only_counts_and_shows() -> None:
    running = list(commands(Path(worker._global_node.get_temp_dir_path())))
    assert any("/raylet " in line for line in running)
    for absent in ("log_monitor.py", "monitor.py", "dashboard.py"):
        assert not any(f"/{absent} " in line for line in running)
