"""An engine over the fake model of the books tests, and callers that wait for it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from shoal.engine.config import EngineConfig
from shoal.engine.engine import AsyncEngine
from shoal.engine.executor import Capacity
from shoal.engine.plan import Result
from shoal.engine.request import Request, SamplingParams, Update

from .core.fake import FakeExecutor, capacity, reference

MAX_LEN = 64


class Executor(FakeExecutor):
    """The fake model; `gate` holds each result back, `broken` makes the next one fail."""

    def __init__(self, depth: int = 1) -> None:
        super().__init__(capacity(num_blocks=200, max_model_len=MAX_LEN), depth=depth)
        self.gate = threading.Event()
        self.gate.set()
        self.waiting = threading.Event()
        self.broken: Exception | None = None
        self.closed = 0

    def start(self, config: EngineConfig) -> Capacity:
        return capacity(num_blocks=200, max_model_len=MAX_LEN)

    def collect(self) -> Result:
        self.waiting.set()
        assert self.gate.wait(60)
        if self.broken is not None:
            raise self.broken
        return super().collect()

    def close(self) -> None:
        self.closed += 1


class Caller:
    """Collects what a sink is given, and waits for ends."""

    def __init__(self) -> None:
        self.batches: list[list[Update]] = []
        self.changed = threading.Condition()

    def sink(self, updates: list[Update]) -> None:
        with self.changed:
            self.batches.append(updates)
            self.changed.notify_all()

    @property
    def updates(self) -> list[Update]:
        return [update for batch in self.batches for update in batch]

    def ends(self) -> int:
        return sum(update.finish is not None for update in self.updates)

    def wait(self, num_ends: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.ends() >= num_ends, 30)

    def tokens(self, id: str, sibling: int = 0) -> list[int]:
        return [t for u in self.updates if (u.id, u.sibling) == (id, sibling) for t in u.tokens]


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.001)


@contextlib.contextmanager
def running(executor: Executor | None = None, **keys: Any) -> Iterator[AsyncEngine]:
    engine = AsyncEngine(EngineConfig(**{"max_num_seqs": 8, **keys}), executor or Executor())
    engine.start()
    try:
        yield engine
    finally:
        engine.close()


def request(id: str = "r", prompt: tuple[int, ...] = (1, 2, 3), **params: Any) -> Request:
    values = {"max_tokens": 10, "seed": 7, "ignore_eos": True, **params}
    return Request(id=id, prompt=prompt, params=SamplingParams(**values))


def want(made: Request, sibling: int = 0) -> list[int]:
    return reference(made, sibling, [None], MAX_LEN)
