"""The stream of one answer: when its tokens arrived, how many they were, why it failed."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import aiohttp

ENDING_S = 0.2
"""How long the end of HTTP's message is waited for, once the answer has ended."""


@dataclass(slots=True, kw_only=True)
class Record:
    """One request, in seconds of `time.perf_counter`.

    `due` is when it was to start, `begin` when it did. `arrivals` are the moments at which output
    came, one for each chunk with output. `expected` tokens were asked for. `status` is HTTP's, 0:
    no answer began. `error` says why it failed.
    """

    due: float = 0.0
    begin: float = 0.0
    end: float = 0.0
    arrivals: list[float] = field(default_factory=list)
    num_prompt: int = 0
    num_cached: int = 0
    num_output: int = 0
    expected: int = 0
    turn: int = 0
    status: int = 0
    error: str | None = None
    pieces: list[str] = field(default_factory=list, repr=False)

    @property
    def text(self) -> str:
        """The answer."""
        return "".join(self.pieces)


async def read(response: aiohttp.ClientResponse, record: Record) -> None:
    """Note when each event of the stream arrives; the answer ends at [DONE].

    HTTP's own end is read too: without it the connection could not serve the next request.
    """
    rest = b""
    async for data in response.content.iter_any():
        now = time.perf_counter()
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            event = line[5:].strip() if line.startswith(b"data:") else b""
            if event == b"[DONE]":
                record.num_output = record.num_output or len(record.arrivals)
                record.end = now
                with suppress(aiohttp.ClientError, OSError, TimeoutError):
                    async with asyncio.timeout(ENDING_S):
                        await response.read()
                return
            if event:
                _note(event, now, record)
    record.error = record.error or "the stream ended without [DONE]"


def _note(event: bytes, now: float, record: Record) -> None:
    """Enter an event; what is no chunk of an answer is the request's error."""
    chunk = _parsed(event)
    if chunk is None:
        record.error = record.error or f"the stream brought no chunk of an answer: {event[:80]!r}"
        return
    choices = chunk.get("choices")
    if chunk.get("error"):
        record.error = record.error or str(chunk["error"])
    if choices and _has_output(choices[0]):
        record.arrivals.append(now)
        record.pieces.append(_text(choices[0]))
    if isinstance(usage := chunk.get("usage"), dict):
        record.num_prompt = _count(usage, "prompt_tokens")
        record.num_output = _count(usage, "completion_tokens")
        record.num_cached = _count(usage.get("prompt_tokens_details"), "cached_tokens")


def _parsed(event: bytes) -> dict[str, Any] | None:
    """The chunk, whose choices are objects; None: it is none."""
    try:
        chunk = json.loads(event)
    except (ValueError, RecursionError):
        return None
    if not isinstance(chunk, dict):
        return None
    choices = chunk.get("choices") or []
    whole = isinstance(choices, list) and all(isinstance(choice, dict) for choice in choices)
    return chunk if whole else None


def _count(usage: object, name: str) -> int:
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if isinstance(value, int) else 0


def _has_output(choice: dict[str, Any]) -> bool:
    """Whether tokens came: in chat not with the chunk that gives the role alone.

    A token may bring no text yet: a part of a character, or an end.
    """
    delta = choice.get("delta")
    if not isinstance(delta, dict):
        return True
    return "role" not in delta or bool(delta.get("content") or choice.get("finish_reason"))


def _text(choice: dict[str, Any]) -> str:
    delta = choice.get("delta")
    said = delta.get("content") if isinstance(delta, dict) else choice.get("text")
    return str(said or "")
