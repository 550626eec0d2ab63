"""Load on an OpenAI-compatible server, and the times at which its tokens arrived."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from random import Random

import aiohttp

from ..client import refusal
from .arrivals import Level, starts
from .stream import Record, read
from .talks import Ask, Talk
from .watch import Reading, watch

IDLE_S = 4.0
"""How long a connection may lie idle: many servers close theirs after 5 s, and a request sent at
that very moment would fail."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What a level brought. `client_cpu_s` is what this process itself spent.

    `begin` is on the clock of the records. `readings` are the server's own gauges over the run.
    """

    level: Level
    records: tuple[Record, ...]
    duration_s: float
    client_cpu_s: float
    begin: float = 0.0
    readings: tuple[Reading, ...] = ()


async def drive(
    url: str,
    level: Level,
    talks: Sequence[Talk],
    *,
    headers: Mapping[str, str],
    metrics_url: str | None = None,
    seed: int = 0,
    timeout_s: float = 600.0,
    on_done: Callable[[], None] = lambda: None,
) -> Run:
    """Send all talks to `url` as `level` says, in their order, and wait for all answers.

    A talk takes one place among those at once from its first request to its last answer.
    `timeout_s` bounds the silence on a stream. A failure is in the record, and ends its talk; it is
    never raised.
    """
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=30.0, sock_read=timeout_s)
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_S)
    room = asyncio.Semaphore(level.concurrency)
    records: list[Record] = []

    async def hold(talk: Talk, due: float) -> None:
        try:
            await _converse(session, url, talk, due, records.append)
        finally:
            room.release()
        on_done()

    async with aiohttp.ClientSession(
        connector=connector, timeout=timeout, headers=headers
    ) as session:
        begin, spent = time.perf_counter(), time.process_time()
        watched: list[Reading] = []
        watcher = asyncio.create_task(watch(session, metrics_url, watched))
        async with asyncio.TaskGroup() as group:
            for talk, due in zip(talks, starts(level, len(talks), Random(seed)), strict=True):
                await _until(begin + due)
                await room.acquire()
                group.create_task(hold(talk, begin + due))
        duration = max((record.end for record in records), default=begin) - begin
        spent = time.process_time() - spent
        watcher.cancel()
        with suppress(asyncio.CancelledError):
            await watcher
    return Run(
        level=level,
        records=tuple(records),
        duration_s=duration,
        client_cpu_s=spent,
        begin=begin,
        readings=tuple(watched),
    )


def _until(moment: float) -> Awaitable[None]:
    return asyncio.sleep(max(0.0, moment - time.perf_counter()))


async def _converse(
    session: aiohttp.ClientSession,
    url: str,
    talk: Talk,
    due: float,
    keep: Callable[[Record], None],
) -> None:
    """All requests of a talk, each once the one before it is answered."""
    ask: Ask | None = next(talk, None)
    turn = 0
    while ask is not None:
        if ask.pause_s:
            await asyncio.sleep(ask.pause_s)
        record = await _send(session, url, ask)
        record.turn, record.due = turn, record.begin if turn else due
        keep(record)
        turn += 1
        try:
            ask = None if record.error else talk.send(record.text)
        except StopIteration:
            ask = None


async def _send(session: aiohttp.ClientSession, url: str, ask: Ask) -> Record:
    record = Record(begin=time.perf_counter(), expected=ask.output_len, num_prompt=ask.input_len)
    try:
        async with session.post(url, data=ask.body) as response:
            record.status = response.status
            if response.status != 200:
                record.error = refusal(response.status, await response.read())
            else:
                await read(response, record)
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        record.error = f"{type(error).__name__}: {error}".rstrip(": ")
    record.end = record.end or time.perf_counter()
    return record
