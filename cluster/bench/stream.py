"""The stream of one answer: when its tokens arrived, how many they were, why it failed."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import aiohttp

OUTPUT = ("content", "text", "reasoning", "reasoning_content", "tool_calls", "refusal")
"""What of a chunk is made of tokens."""

DONE = b"[DONE]"
ENDING_S = 0.2
"""How long the end of HTTP's message is waited for, once the answer has ended."""


@dataclass(slots=True, kw_only=True)
class Record:
    """One request, in seconds of `time.perf_counter`.

    `due` is when it was to start, `begin` when it did. `arrivals` are the moments at which output
    came, one for each chunk with output; `ended` is when a chunk without any told the end.
    `expected` tokens were asked for. `by_chunks`: the server did not tell how many there were.
    `status` is HTTP's, 0: no answer began. `error` says why it failed.
    """

    due: float = 0.0
    begin: float = 0.0
    end: float = 0.0
    ended: float = 0.0
    arrivals: list[float] = field(default_factory=list)
    num_prompt: int = 0
    num_cached: int = 0
    num_output: int = 0
    expected: int = 0
    by_chunks: bool = True
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
    rest, now = b"", time.perf_counter()
    async for data in response.content.iter_any():
        now = time.perf_counter()
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            event = _event(line)
            if event == DONE:
                _complete(record, now)
                with suppress(aiohttp.ClientError, OSError, TimeoutError):
                    async with asyncio.timeout(ENDING_S):
                        await response.read()
                return
            if event:
                _note(event, now, record)
    if _event(rest) == DONE:  # as a last line without an end
        _complete(record, now)
    else:
        record.error = record.error or "the stream ended without [DONE]"


def _event(line: bytes) -> bytes:
    return line[5:].strip() if line.startswith(b"data:") else b""


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
    elif choices and choices[0].get("finish_reason"):
        record.ended = now
    if isinstance(usage := chunk.get("usage"), dict):
        record.num_prompt = _count(usage, "prompt_tokens") or record.num_prompt
        record.num_output = _count(usage, "completion_tokens")
        record.by_chunks = record.num_output == 0
        record.num_cached = _count(usage.get("prompt_tokens_details"), "cached_tokens")


def _complete(record: Record, now: float) -> None:
    """Enter what only the whole stream tells."""
    record.end = now
    if record.ended and record.num_output > len(record.arrivals):
        # The last token had no text, as an end of sequence has none, and came with the end.
        record.arrivals.append(record.ended)
    if not record.arrivals:
        record.error = record.error or "the answer has no output"
    if record.by_chunks:
        record.num_output = len(record.arrivals)


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
    """Whether tokens came: not with a chunk that gives the role, or tells the end, alone.

    A token may bring no text yet, as a part of a character; thoughts and calls are tokens too.
    """
    delta = _delta(choice)
    if any(delta.get(name) for name in OUTPUT):
        return True
    return "role" not in delta and not choice.get("finish_reason")


def _text(choice: dict[str, Any]) -> str:
    delta = _delta(choice)
    return str(delta.get("content") or delta.get("text") or "")


def _delta(choice: dict[str, Any]) -> dict[str, Any]:
    """What a chunk adds: in chat the delta, else the choice itself."""
    delta = choice.get("delta")
    return delta if isinstance(delta, dict) else choice
