"""An engine that says what it is told to, and a link to it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from shoal.cluster.channel import Channel
from shoal.cluster.link import Load, ModelCard
from shoal.engine.errors import InvalidRequest, Overloaded
from shoal.engine.request import FinishReason, Request, Update

SECRET = b"s" * 32

CARD = ModelCard(
    names=("tiny",),
    model="/models/tiny",
    tokenizer="/models/tiny",
    max_model_len=1024,
    vocab_size=100,
    max_logprobs=20,
    eos_token_ids=(2,),
    sampling_defaults={"temperature": 0.5},
    digest="abc",
    created=1,
)


class ScriptedEngine:
    """Gives every sequence the tokens 0, 1, 2, ... one a step, `max_tokens` of them.

    With `step_s` None a step is made by `step()`, else by a thread.
    """

    def __init__(self, step_s: float | None = None) -> None:
        self.live: dict[tuple[str, int], tuple[int, Request, Callable]] = {}
        self.aborted: list[tuple[str, int | None]] = []
        self.lock = threading.Lock()
        self.full = False
        self.closed = threading.Event()
        if step_s is not None:
            threading.Thread(target=self._run, args=(step_s,), daemon=True).start()

    def submit(self, request: Request, sink: Callable[[list[Update]], None]) -> None:
        if self.full:
            raise Overloaded("the queue is full", 3.0)
        if not request.prompt:
            raise InvalidRequest("prompt is empty", "prompt")
        with self.lock:
            for i in range(request.params.n):
                self.live[request.id, request.sibling + i] = (0, request, sink)

    def abort(self, request_id: str, sibling: int | None = None) -> None:
        with self.lock:
            self.aborted.append((request_id, sibling))
            for key in [k for k in self.live if k[0] == request_id and sibling in (None, k[1])]:
                del self.live[key]

    def load(self) -> Load:
        return Load(running=len(self.live), counters={"steps": 1.0})

    def step(self) -> None:
        sinks: dict[Callable, list[Update]] = {}
        with self.lock:
            for key, (done, request, sink) in list(self.live.items()):
                last = done + 1 == (request.params.max_tokens or 16)
                finish = FinishReason.LENGTH if last else None
                update = Update(*key, tokens=(done,), finish=finish, epoch=request.epoch)
                sinks.setdefault(sink, []).append(update)
                self.live[key] = (done + 1, request, sink)
                if last:
                    del self.live[key]
        for sink, updates in sinks.items():
            sink(updates)

    def close(self) -> None:
        self.closed.set()

    def _run(self, step_s: float) -> None:
        while not self.closed.wait(step_s):
            self.step()


@contextmanager
def channel_of(engine: ScriptedEngine, replica: str = "r1") -> Iterator[Channel]:
    channel = Channel(engine, replica=replica, card=CARD, secret=SECRET, host="127.0.0.1")
    channel.start()
    try:
        yield channel
    finally:
        channel.close()


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine()


@pytest.fixture
def channel(engine: ScriptedEngine) -> Iterator[Channel]:
    with channel_of(engine) as channel:
        yield channel


@pytest.fixture(scope="session")
def until() -> Callable:
    return _until


async def _until(condition: Callable[[], object], timeout_s: float = 10.0) -> None:
    """Wait for a condition, on the loop."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "the condition never came true"
        await asyncio.sleep(0.005)
