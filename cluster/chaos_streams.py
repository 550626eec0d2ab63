"""The streams of `shoal bench chaos`: requests of many kinds, and what a client sees of each."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import aiohttp

from .client import refusal

_KINDS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 0.8, "n": 2},
    {"temperature": 0.0, "logprobs": 2},
    {"temperature": 1.0, "stop": ["zebra quagga", "the end", "\n\n\n"]},
    {"temperature": 0.9, "presence_penalty": 0.5, "repetition_penalty": 1.1, "top_k": 40},
)
AWAY_S = 30.0
AGAIN_S = 0.1
_HUNG_UP = (aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError, ConnectionResetError)
_WORDS = "one day a little cat saw the big red sun and went to play with her friend Tom in a park"


@dataclass(slots=True, kw_only=True)
class Told:
    """What a client was told: the pieces of each choice in order, the usage, the error.

    `pause_s` is the longest time between two pieces, `first_s` the one before the first. It was
    open from `began` to `ended`; `hung_up`: its connection was ended after it had been answered.
    """

    choices: dict[int, list[Any]] = field(default_factory=dict)
    usage: Any = None
    error: str | None = None
    pause_s: float = 0.0
    first_s: float = 0.0
    began: float = 0.0
    ended: float = 0.0
    hung_up: bool = False

    def difference(self, other: Told) -> str | None:
        """Where the other was told something else first; ids, times and what was found in a cache
        do not count.

        Log probabilities may differ by rounding: company changes the order of additions where
        kernels do not fix it.
        """
        return _difference([self.choices, self.usage], [other.choices, other.usage], "")


def _difference(one: Any, other: Any, at: str) -> str | None:
    if isinstance(one, float) and isinstance(other, float):
        return None if math.isclose(one, other, abs_tol=1e-4) else f"{at}: {one} != {other}"
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        pairs = [(f"{at}.{key}", one[key], other[key]) for key in one]
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = [(f"{at}[{i}]", *pair) for i, pair in enumerate(zip(one, other, strict=True))]
    else:
        return None if one == other else f"{at}: {one!r:.300} != {other!r:.300}"
    return next((found for name, a, b in pairs if (found := _difference(a, b, name))), None)


def bodies(model: str, count: int, output_len: int, seed: int) -> list[bytes]:
    """`count` requests of all kinds in turn, each with a seed of its own."""
    random, words = Random(seed), _WORDS.split()
    made = []
    for i in range(count):
        prompt = " ".join(random.choices(words, k=random.randint(4, 40)))
        fields = {
            "model": model,
            "prompt": prompt,
            "seed": i,
            "max_tokens": output_len,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        made.append(json.dumps(fields | _KINDS[i % len(_KINDS)]).encode())
    return made


async def tell_all(
    url: str,
    sent: Sequence[bytes],
    *,
    headers: dict[str, str],
    concurrency: int,
    timeout_s: float,
    on_done: Callable[[], None] = lambda: None,
) -> list[Told]:
    """What was told on each stream, at most `concurrency` at once, in the order of `sent`.

    `timeout_s` bounds the silence on a stream.
    """
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=30.0, sock_read=timeout_s)
    room = asyncio.Semaphore(concurrency)

    async def one(body: bytes) -> Told:
        async with room:
            told = await _tell(session, url, body)
        on_done()
        return told

    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=timeout, headers=headers
    ) as session:
        return list(await asyncio.gather(*map(one, sent)))


async def _tell(session: aiohttp.ClientSession, url: str, body: bytes) -> Told:
    told = Told(began=time.perf_counter())
    try:
        async with await _connected(session, url, body) as response:
            if response.status != 200:
                told.error = refusal(response.status, await response.read())
            else:
                await _read(response, told)
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        told.error = f"{type(error).__name__}: {error}".rstrip(": ")
        told.hung_up = isinstance(error, _HUNG_UP)
    told.ended = time.perf_counter()
    return told


async def _connected(session: aiohttp.ClientSession, url: str, body: bytes) -> Any:
    """The answer as it begins; where nobody listens it is asked again, as clients do: a gateway
    that was killed is away until there is another one.
    """
    until = time.perf_counter() + AWAY_S
    while True:
        try:
            return await session.post(url, data=body)
        except aiohttp.ClientConnectorError:
            if time.perf_counter() > until:
                raise
            await asyncio.sleep(AGAIN_S)


async def _read(response: aiohttp.ClientResponse, told: Told) -> None:
    last = told.began
    begun = False
    async for line in response.content:
        event = line[5:].strip() if line.startswith(b"data:") else b""
        if event == b"[DONE]":
            return
        if not event:
            continue
        now = time.perf_counter()
        if begun:
            told.pause_s = max(told.pause_s, now - last)
        else:
            told.first_s, begun = now - last, True
        last = now
        _note(json.loads(event), told)
    told.error = told.error or "the stream ended without [DONE]"


def _note(chunk: dict[str, Any], told: Told) -> None:
    if chunk.get("error"):
        told.error = str(chunk["error"])
    for choice in chunk.get("choices") or ():
        told.choices.setdefault(choice.pop("index"), []).append(choice)
    if usage := chunk.get("usage"):
        usage.pop("prompt_tokens_details", None)
        told.usage = usage
