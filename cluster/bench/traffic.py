"""Load on an OpenAI-compatible server, and the times at which its tokens arrived."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import TypeAlias

import aiohttp

from ..client import proxy_of, refusal
from .arrivals import Level, starts
from .stream import Record, read
from .talks import Ask, Talk
from .watch import Get, Reading, watching

IDLE_S = 4.0
"""How long a connection may lie idle: many servers close theirs after 5 s, and a request sent at
that very moment would fail."""

Post: TypeAlias = Callable[..., AbstractAsyncContextManager[aiohttp.ClientResponse]]
"""Sends the body that it is given as `data`."""


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
    warm: Sequence[Talk] = (),
    metrics_url: str | None = None,
    seed: int = 0,
    timeout_s: float = 600.0,
    on_done: Callable[[], None] = lambda: None,
) -> Run:
    """Send all talks to `url` as `level` says, in their order, and wait for all answers.

    A talk takes one place among those at once from its first request to its last answer. Those of
    `warm` come before, over the same connections and as many at once, and count for nothing.
    `timeout_s` bounds the silence on a stream. A failure is in the record, and ends its talk; it is
    never raised.
    """
    # The gauges have connections of their own: they would take one that is warm.
    async with _session(headers, timeout_s) as session, _session(headers, timeout_s) as aside:
        post = partial(session.post, url, proxy=proxy_of(url))
        get: Get | None = None
        if metrics_url is not None:
            get = partial(aside.get, metrics_url, proxy=proxy_of(metrics_url))
        await _load(post, Level(concurrency=level.concurrency), warm, on_done=on_done)
        begin, spent = time.perf_counter(), time.process_time()
        async with watching(get) as readings:
            records = await _load(post, level, talks, seed=seed, begin=begin, on_done=on_done)
            duration = max((record.end for record in records), default=begin) - begin
            spent = time.process_time() - spent
    return Run(
        level=level,
        records=tuple(records),
        duration_s=duration,
        client_cpu_s=spent,
        begin=begin,
        readings=tuple(readings),
    )


def _session(headers: Mapping[str, str], timeout_s: float) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_S),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=30.0, sock_read=timeout_s),
        headers=headers,
    )


async def _load(
    post: Post,
    level: Level,
    talks: Sequence[Talk],
    *,
    seed: int = 0,
    begin: float = 0.0,
    on_done: Callable[[], None],
) -> list[Record]:
    """The records of all talks, whose moments count from `begin`."""
    room = asyncio.Semaphore(level.concurrency)
    records: list[Record] = []

    async def hold(talk: Talk, due: float) -> None:
        try:
            await _converse(post, talk, due, records.append)
        finally:
            room.release()
        on_done()

    async with asyncio.TaskGroup() as group:
        for talk, due in zip(talks, starts(level, len(talks), Random(seed)), strict=True):
            await _until(begin + due)
            await room.acquire()
            group.create_task(hold(talk, begin + due))
    return records


def _until(moment: float) -> Awaitable[None]:
    return asyncio.sleep(max(0.0, moment - time.perf_counter()))


async def _converse(post: Post, talk: Talk, due: float, keep: Callable[[Record], None]) -> None:
    """All requests of a talk, each once the one before it is answered."""
    ask: Ask | None = next(talk, None)
    turn = 0
    while ask is not None:
        if ask.pause_s:
            await asyncio.sleep(ask.pause_s)
        record = await _send(post, ask)
        record.turn, record.due = turn, record.begin if turn else due
        keep(record)
        turn += 1
        try:
            ask = None if record.error else talk.send(record.text)
        except StopIteration:
            ask = None


async def _send(post: Post, ask: Ask) -> Record:
    record = Record(begin=time.perf_counter(), expected=ask.output_len, num_prompt=ask.input_len)
    try:
        async with post(data=ask.body) as response:
            record.status = response.status
            if response.status != 200:
                record.error = refusal(response.status, await response.read())
            else:
                await read(response, record)
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        record.error = f"{type(error).__name__}: {error}".rstrip(": ")
    record.end = record.end or time.perf_counter()
    return record
