"""Load on an OpenAI-compatible server, and the times at which its tokens arrived."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from random import Random

import aiohttp

from .client import refusal


@dataclass(slots=True, kw_only=True)
class Record:
    """One request, in seconds of `time.perf_counter`.

    `arrivals` are the moments at which output came, one for each chunk with output. `error` says
    why it failed.
    """

    begin: float = 0.0
    end: float = 0.0
    arrivals: list[float] = field(default_factory=list)
    num_prompt: int = 0
    num_output: int = 0
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One load: at most `concurrency` requests at once, starting `rate` a second on average.

    A rate of infinity starts each as soon as there is room: a closed loop.
    """

    concurrency: int
    rate: float = math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What a level brought. `client_cpu_s` is what this process itself spent."""

    level: Level
    records: tuple[Record, ...]
    duration_s: float
    client_cpu_s: float


async def drive(
    url: str,
    level: Level,
    bodies: Sequence[bytes],
    *,
    headers: dict[str, str],
    seed: int = 0,
    timeout_s: float = 600.0,
    on_done: Callable[[], None] = lambda: None,
) -> Run:
    """Send all bodies to `url` as `level` says, in their order, and wait for all answers.

    `timeout_s` bounds the silence on a stream. A failure is in the record, never raised.
    """
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=30.0, sock_read=timeout_s)
    connector = aiohttp.TCPConnector(limit=0)
    room = asyncio.Semaphore(level.concurrency)
    records: list[Record] = []

    async def send(body: bytes) -> None:
        try:
            records.append(await _send(session, url, body))
        finally:
            room.release()
        on_done()

    async with aiohttp.ClientSession(
        connector=connector, timeout=timeout, headers=headers
    ) as session:
        begin, spent = time.perf_counter(), time.process_time()
        async with asyncio.TaskGroup() as group:
            async for body in _paced(bodies, level.rate, Random(seed)):
                await room.acquire()
                group.create_task(send(body))
        duration = time.perf_counter() - begin
        spent = time.process_time() - spent
    return Run(level=level, records=tuple(records), duration_s=duration, client_cpu_s=spent)


async def _paced(bodies: Sequence[bytes], rate: float, random: Random) -> AsyncIterator[bytes]:
    """The bodies at the moments of a Poisson process, which does not wait for answers."""
    due = time.perf_counter()
    for number, body in enumerate(bodies):
        if math.isfinite(rate) and number:
            due += random.expovariate(rate)
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
        yield body


async def _send(session: aiohttp.ClientSession, url: str, body: bytes) -> Record:
    record = Record(begin=time.perf_counter())
    try:
        async with session.post(url, data=body) as response:
            if response.status != 200:
                record.error = refusal(response.status, await response.read())
            else:
                await _read(response, record)
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        record.error = f"{type(error).__name__}: {error}".rstrip(": ")
    record.end = time.perf_counter()
    return record


async def _read(response: aiohttp.ClientResponse, record: Record) -> None:
    """Note when each event of the stream arrives."""
    rest = b""
    async for data in response.content.iter_any():
        now = time.perf_counter()
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            event = line[5:].strip() if line.startswith(b"data:") else b""
            if event == b"[DONE]":
                record.num_output = record.num_output or len(record.arrivals)
                return
            if event:
                _note(json.loads(event), now, record)
    record.error = record.error or "the stream ended without [DONE]"


def _note(chunk: dict[str, object], now: float, record: Record) -> None:
    if chunk.get("error"):
        record.error = str(chunk["error"])
    choices, usage = chunk.get("choices"), chunk.get("usage")
    if isinstance(choices, list) and choices and _has_output(choices[0]):
        record.arrivals.append(now)
    if isinstance(usage, dict):
        record.num_prompt = usage.get("prompt_tokens") or 0
        record.num_output = usage.get("completion_tokens") or 0


def _has_output(choice: dict[str, object]) -> bool:
    """Whether tokens came: in chat not with the chunk that gives the role alone.

    A token may bring no text yet: a part of a character, or an end.
    """
    delta = choice.get("delta")
    if not isinstance(delta, dict):
        return True
    return "role" not in delta or bool(delta.get("content") or choice.get("finish_reason"))
