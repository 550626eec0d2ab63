"""Replicas of two ranks each on Ray Serve, whose ranks are killed, stopped and told to end."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from served import title
from shoal.cluster import chaos_faults, chaos_streams
from shoal.cluster.chaos_streams import Told
from streams import Serve, cluster, metric, num_streams, ready, tell, until

STALL_S = 3.0


@pytest.fixture(scope="module")
def log_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("logs")


@pytest.fixture(scope="module")
def serve(log_dir: Path) -> Iterator[Serve]:
    flags = ["--replicas", "2", "-tp", "2", "--threads", "1", "--num-gpu-blocks-override", "512"]
    with chaos_faults.served(
        [*flags, "--drain-grace", "0", "--stall-timeout", str(STALL_S), "--log-dir", str(log_dir)]
    ) as served:
        yield served


@pytest.fixture(scope="module")
def bodies() -> list[bytes]:
    return chaos_streams.bodies("shoal-tiny", 6, 500, seed=4)


@pytest.fixture(scope="module")
def calm(serve: Serve, bodies: list[bytes]) -> list[Told]:
    told = asyncio.run(tell(serve[0], bodies))
    assert not any(one.error for one in told)
    return told


def replicas(url: str) -> list[dict[str, Any]]:
    """Those that are there: for a while the dead are told of too."""
    return [row for row in cluster(url)["replicas"] if row["state"] == "ready"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM])
def test_no_stream_differs_when_a_rank_goes(
    serve: Serve, log_dir: Path, bodies: list[bytes], calm: list[Told], number: int
) -> None:
    url, _ = serve

    def blamed(pid: int) -> list[str]:
        lines = [line for log in log_dir.glob("replica-*.log") for line in log.open()]
        return [line for line in lines if "CRITICAL" in line and f"pid {pid})" in line]

    async def disturbed() -> list[Told]:
        await until(lambda: len(replicas(url)) == 2)
        hit, spared = replicas(url)
        lost = metric(url, "failovers_total")
        telling = asyncio.create_task(tell(url, bodies))
        await until(lambda: num_streams(url) >= 6)
        victims = [rank["pid"] for rank in hit["ranks"]]
        assert len(victims) == 2
        os.kill(victims[1], number)
        told = await telling
        await until(lambda: not any(map(title, (hit["pid"], *victims))))
        assert metric(url, "failovers_total") - lost == (number != signal.SIGTERM)
        assert len(blamed(victims[1])) == (number != signal.SIGTERM)
        await until(lambda: ready(url))
        assert {spared["pid"]} < {row["pid"] for row in replicas(url)}
        return told

    for one, other in zip(asyncio.run(disturbed()), calm, strict=True):
        assert one.error is None
        assert one.difference(other) is None
