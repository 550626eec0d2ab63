"""Streams of the bundled model on Ray, with processes really killed and stopped."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from shoal.cluster import chaos, chaos_streams
from shoal.cluster.chaos_streams import Told

Serve = tuple[str, int]
LONG = 200


@pytest.fixture(scope="module")
def serve() -> Iterator[Serve]:
    flags = ["--replicas", "2", "--threads", "1", "--num-gpu-blocks-override", "2048"]
    with chaos.served(flags) as served:
        yield served


def metric(url: str, name: str) -> float:
    """The sum of a metric over its labels."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    return sum(map(float, re.findall(rf"^shoal_{name}(?:{{[^}}]*}})? (\S+)$", text, re.M)))


async def until(condition: Callable[[], object], timeout_s: float = 120.0) -> None:
    end = time.monotonic() + timeout_s
    while True:
        try:
            if await asyncio.to_thread(condition):
                return
        except OSError:
            pass  # the door is being replaced
        assert time.monotonic() < end, "the condition never came true"
        await asyncio.sleep(0.02)


async def tell(url: str, bodies: list[bytes]) -> list[Told]:
    return await chaos_streams.tell_all(
        f"{url}/v1/completions", bodies, headers={}, concurrency=64, timeout_s=120.0
    )


def test_no_stream_differs_when_replicas_are_killed_and_stopped(serve: Serve) -> None:
    url, pid = serve
    bodies = chaos_streams.bodies("shoal-tiny", 12, LONG, seed=1)

    async def disturbed(number: int) -> list[Told]:
        moved = metric(url, "streams_moved_total")
        telling = asyncio.create_task(tell(url, bodies))
        await until(lambda: metric(url, "num_requests_running") >= 12)
        victim, _ = chaos._targets(pid, ("kill",))
        os.kill(victim, number)
        try:
            await until(lambda: metric(url, "streams_moved_total") > moved)
            told = await telling
        finally:
            if number == signal.SIGSTOP:
                os.kill(victim, signal.SIGCONT)
        await until(
            lambda: b'"ready"' in urllib.request.urlopen(f"{url}/health", timeout=5).read()[:20]
        )
        return told

    calm = asyncio.run(tell(url, bodies))
    assert not any(one.error for one in calm)
    for number in (signal.SIGKILL, signal.SIGSTOP):
        for one, other in zip(asyncio.run(disturbed(number)), calm, strict=True):
            assert one.error is None
            assert one.difference(other) is None


def test_a_killed_gateway_frees_what_it_held_and_nothing_else(serve: Serve) -> None:
    url, pid = serve
    replicas = chaos._targets(pid, ("kill",))

    async def test() -> None:
        telling = asyncio.create_task(tell(url, chaos_streams.bodies("shoal-tiny", 8, 1500, 2)))
        await until(lambda: metric(url, "num_requests_running") >= 8)
        (gateway,) = (p for p in below(pid) if ":Gateway" in title(p))
        os.kill(gateway, signal.SIGKILL)
        assert all(one.error for one in await telling)
        await until(lambda: metric(url, "num_requests_running") == 0)

    asyncio.run(test())
    assert chaos._targets(pid, ("kill",)) == replicas


def title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def below(pid: int) -> list[int]:
    """The descendants of a process."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*"):
        try:
            children = map(int, (task / "children").read_text().split())
        except OSError:
            continue
        for child in children:
            found += [child, *below(child)]
    return found
