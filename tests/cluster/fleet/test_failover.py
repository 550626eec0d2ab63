"""Streams of the bundled model on Ray, with processes really killed, stopped and told to end."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator

import pytest
from served import descendants, title
from shoal.cluster import chaos_faults, chaos_streams
from shoal.cluster.chaos_streams import Told
from streams import Serve, metric, num_streams, ready, tell, until

LONG = 300
TOLD_TO_END = signal.SIGTERM


@pytest.fixture(scope="module")
def serve() -> Iterator[Serve]:
    flags = ["--replicas", "2", "--threads", "1", "--num-gpu-blocks-override", "2048"]
    with chaos_faults.served([*flags, "--drain-grace", "0"]) as served:
        yield served


@pytest.fixture(scope="module")
def calm(serve: Serve) -> list[Told]:
    told = asyncio.run(tell(serve[0], chaos_streams.bodies("shoal-tiny", 12, LONG, seed=1)))
    assert not any(one.error for one in told)
    return told


def gateways(pid: int) -> list[int]:
    return [p for p in descendants(pid) if ":Gateway" in title(p)]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP, TOLD_TO_END])
def test_no_stream_differs_when_a_replica_goes(serve: Serve, calm: list[Told], number: int) -> None:
    url, pid = serve
    bodies = chaos_streams.bodies("shoal-tiny", 12, LONG, seed=1)

    async def disturbed() -> list[Told]:
        moved, lost = metric(url, "streams_moved_total"), metric(url, "failovers_total")
        telling = asyncio.create_task(tell(url, bodies))
        await until(lambda: num_streams(url) >= 12)
        victim, _ = chaos_faults.targets(pid, "kill")
        os.kill(victim, number)
        try:
            told = await telling
        finally:
            if number == signal.SIGSTOP:
                os.kill(victim, signal.SIGCONT)
        if number != signal.SIGSTOP:
            await until(lambda: not title(victim))
        assert metric(url, "streams_moved_total") > moved
        assert metric(url, "failovers_total") - lost == (number != TOLD_TO_END)
        await until(lambda: ready(url))
        return told

    for one, other in zip(asyncio.run(disturbed()), calm, strict=True):
        assert one.error is None
        assert one.difference(other) is None


def test_a_gateway_that_is_told_to_end_hands_over(serve: Serve) -> None:
    url, pid = serve
    (gateway,) = gateways(pid)

    async def test() -> None:
        telling = asyncio.create_task(tell(url, chaos_streams.bodies("shoal-tiny", 8, 200, 3)))
        await until(lambda: num_streams(url) >= 8)
        os.kill(gateway, signal.SIGTERM)
        while title(gateway):
            (one,) = await tell(url, chaos_streams.bodies("shoal-tiny", 1, 2, 3))
            assert one.error is None
        assert not any(one.error for one in await telling)
        assert await asyncio.to_thread(ready, url)

    asyncio.run(test())


def test_a_killed_gateway_frees_what_it_held_and_nothing_else(serve: Serve) -> None:
    url, pid = serve
    replicas = chaos_faults.targets(pid, "kill")

    async def test() -> None:
        telling = asyncio.create_task(tell(url, chaos_streams.bodies("shoal-tiny", 8, 1500, 2)))
        await until(lambda: num_streams(url) >= 8)
        (gateway,) = gateways(pid)
        os.kill(gateway, signal.SIGKILL)
        assert all(one.error for one in await telling)
        await until(lambda: metric(url, "num_requests_running") == 0)

    asyncio.run(test())
    assert chaos_faults.targets(pid, "kill") == replicas
