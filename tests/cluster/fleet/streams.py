"""Streams of a serve in a process of its own, and what its processes are."""

from __future__ import annotations

import asyncio
import json
import re
import time
import urllib.request
from collections.abc import Callable
from typing import Any

from shoal.cluster import chaos_streams
from shoal.cluster.chaos_streams import Told

Serve = tuple[str, int]
"""Where it answers, and its process."""


def metric(url: str, name: str) -> float:
    """The sum of a metric over its labels."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=60) as answer:
        text = answer.read().decode()
    return sum(map(float, re.findall(rf"^shoal_{name}(?:{{[^}}]*}})? (\S+)$", text, re.M)))


def cluster(url: str) -> dict[str, Any]:
    """What a gateway tells of all processes."""
    with urllib.request.urlopen(f"{url}/cluster", timeout=60) as answer:
        told: dict[str, Any] = json.load(answer)
        return told


def num_streams(url: str) -> int:
    """Sequences of the gateway that answers, at this moment: replicas tell theirs in beats."""
    return sum(gateway["streams"] for gateway in cluster(url)["gateways"])


def ready(url: str) -> bool:
    """Whether every replica is there."""
    with urllib.request.urlopen(f"{url}/health", timeout=60) as answer:
        return answer.read().startswith(b'{"status":"ready"')


async def until(condition: Callable[[], object], timeout_s: float = 120.0) -> None:
    """Wait for a condition, beside the loop; a door that does not answer is no answer."""
    end = time.monotonic() + timeout_s
    while True:
        try:
            if await asyncio.to_thread(condition):
                return
        except OSError:
            pass  # the door is being replaced
        assert time.monotonic() < end, "the condition never came true"
        await asyncio.sleep(0.05)


async def tell(url: str, bodies: list[bytes]) -> list[Told]:
    """What is told on streams that run all at once."""
    return await chaos_streams.tell_all(
        f"{url}/v1/completions", bodies, headers={}, concurrency=64, timeout_s=120.0
    )
