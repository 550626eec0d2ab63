"""A server's own gauges while it is measured: KV cache in use, requests running and waiting."""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import NamedTuple, TypeAlias

import aiohttp

EVERY_S = 0.5

_GAUGES = {
    "kv_usage": ("kv_cache_usage_perc", "gpu_cache_usage_perc", "token_usage"),
    "running": ("num_requests_running", "num_running_reqs"),
    "waiting": ("num_requests_waiting", "num_queue_reqs"),
}
"""What shoal, vLLM and SGLang call them, behind a prefix of their own."""

_LINE = re.compile(r"^(?:shoal_|vllm:|sglang:)(\w+)(?:\{[^}]*\})? (\S+)")

Get: TypeAlias = Callable[[], AbstractAsyncContextManager[aiohttp.ClientResponse]]
"""Asks for the server's /metrics."""


class Reading(NamedTuple):
    """The gauges at a moment of `time.perf_counter`: of all replicas the fullest cache, and the
    sums of the requests.
    """

    at: float
    kv_usage: float
    running: float
    waiting: float


@asynccontextmanager
async def watching(get: Get | None) -> AsyncIterator[list[Reading]]:
    """The readings, which grow until the body ends; without `get` there are none."""
    readings: list[Reading] = []
    watcher = asyncio.create_task(_watch(get, readings)) if get is not None else None
    try:
        yield readings
    finally:
        if watcher is not None:
            watcher.cancel()
            with suppress(asyncio.CancelledError):
                await watcher


async def _watch(get: Get, readings: list[Reading]) -> None:
    """Read the gauges again and again; ends at once where the server does not tell them. One that
    has told them may fail to at times, as a busy one does.
    """
    while True:
        begin = time.perf_counter()
        try:
            async with get() as answer:
                text = await answer.text() if answer.status == 200 else ""
        except (aiohttp.ClientError, OSError, TimeoutError, UnicodeDecodeError):
            text = ""
        found = reading(text, begin)
        if found is not None:
            readings.append(found)
        elif not readings:
            return
        await asyncio.sleep(EVERY_S)


def reading(text: str, at: float) -> Reading | None:
    """The gauges of an answer of /metrics, or None where it has none of them.

    A server that tells a gauge under two names is counted once.
    """
    values: dict[str, list[float]] = {}
    for line in text.splitlines():
        found = _LINE.match(line)
        if found and (value := _finite(found[2])) is not None:
            values.setdefault(line[: found.start(1)] + found[1], []).append(value)

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


def _finite(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
