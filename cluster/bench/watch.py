"""A server's own gauges while it is measured: KV cache in use, requests running and waiting."""

from __future__ import annotations

import asyncio
import re
import time
from typing import NamedTuple

import aiohttp

EVERY_S = 0.5

_GAUGES = {
    "kv_usage": ("kv_cache_usage_perc", "gpu_cache_usage_perc", "token_usage"),
    "running": ("num_requests_running", "num_running_reqs"),
    "waiting": ("num_requests_waiting", "num_queue_reqs"),
}
"""What shoal, vLLM and SGLang call them, behind a prefix of their own."""

_LINE = re.compile(r"^(?:shoal_|vllm:|sglang:)(\w+)(?:\{[^}]*\})? ([-+\d.eE]+)")


class Reading(NamedTuple):
    """The gauges at a moment of `time.perf_counter`: of all replicas the fullest cache, and the
    sums of the requests.
    """

    at: float
    kv_usage: float
    running: float
    waiting: float


async def watch(session: aiohttp.ClientSession, url: str | None, readings: list[Reading]) -> None:
    """Read the gauges again and again; ends at once where the server does not tell them."""
    while url is not None:
        begin = time.perf_counter()
        try:
            async with session.get(url) as answer:
                text = await answer.text() if answer.status == 200 else ""
        except (aiohttp.ClientError, OSError, TimeoutError, UnicodeDecodeError):
            return
        if (found := reading(text, begin)) is None:
            return
        readings.append(found)
        await asyncio.sleep(EVERY_S)


def reading(text: str, at: float) -> Reading | None:
    """The gauges of an answer of /metrics, or None where it has none of them.

    A server that tells a gauge under two names is counted once.
    """
    values: dict[str, list[float]] = {}
    for line in text.splitlines():
        if found := _LINE.match(line):
            values.setdefault(line[: found.start(1)] + found[1], []).append(float(found[2]))

    def of(gauge: str) -> list[float]:
        for name in _GAUGES[gauge]:
            for prefix in ("shoal_", "vllm:", "sglang:"):
                if some := values.get(prefix + name):
                    return some
        return []

    usage, running, waiting = (of(gauge) for gauge in _GAUGES)
    if not (usage or running or waiting):
        return None
    return Reading(at, max(usage, default=0.0), sum(running), sum(waiting))
