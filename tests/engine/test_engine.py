"""The engine's thread, over the fake model of the books tests."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from shoal.engine import engine as engine_module
from shoal.engine.admission import Seeds, room_for_output
from shoal.engine.config import EngineConfig
from shoal.engine.engine import AsyncEngine
from shoal.engine.errors import ContextTooLong, EngineLost, InvalidRequest, Overloaded, WorkerLost
from shoal.engine.executor import Capacity
from shoal.engine.plan import Result
from shoal.engine.request import FinishReason, Request, SamplingParams, Update

from .core.fake import EOS, VOCAB, FakeExecutor, capacity, reference

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
        assert self.gate.wait(30)
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
    deadline = time.monotonic() + 30
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


@pytest.mark.parametrize("depth", [1, 2])
def test_many_requests_from_many_threads(depth: int) -> None:
    with running(Executor(depth)) as engine:
        callers = [Caller() for _ in range(4)]

        def send(which: int) -> None:
            for i in range(10):
                made = request(f"{which}-{i}", (which, i, 3), max_tokens=1 + i, n=1 + i % 3)
                engine.submit(made, callers[which].sink)

        threads = [threading.Thread(target=send, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for which, caller in enumerate(callers):
            caller.wait(sum(1 + i % 3 for i in range(10)))
            for i in range(10):
                made = request(f"{which}-{i}", (which, i, 3), max_tokens=1 + i, n=1 + i % 3)
                for sibling in range(made.params.n):
                    assert caller.tokens(made.id, sibling) == want(made, sibling)
        load = engine.load()
        assert load.counters is not None
        assert load.counters["finished_length"] == sum(1 + i % 3 for i in range(10)) * 4
        assert (load.running, load.waiting) == (0, 0)


def test_a_sink_gets_one_batch_a_step() -> None:
    executor = Executor()
    with running(executor) as engine:
        one, other = Caller(), Caller()
        executor.gate.clear()
        engine.submit(request("first", max_tokens=2), one.sink)
        assert executor.waiting.wait(30)
        for i in range(3):
            engine.submit(request(f"a{i}", max_tokens=2), one.sink)
        engine.submit(request("b", max_tokens=2), other.sink)
        executor.gate.set()
        one.wait(4)
        other.wait(1)
        assert [len(batch) for batch in one.batches] == [1, 4, 3]
        assert [len(batch) for batch in other.batches] == [1, 1]
        assert all(update.id == "b" for update in other.updates)


def test_abort() -> None:
    executor = Executor()
    with running(executor) as engine:
        caller, stays = Caller(), Caller()
        executor.gate.clear()
        engine.submit(request("gone", max_tokens=None), caller.sink)
        engine.submit(request("n", n=3, max_tokens=20), stays.sink)
        assert executor.waiting.wait(30)
        engine.abort("gone")
        engine.abort("n", 1)
        engine.abort("unknown")
        executor.gate.set()
        stays.wait(2)
        assert {update.sibling for update in stays.updates} == {0, 2}
        assert caller.updates == []
        until(lambda: engine.load().running == 0)
        assert engine.load().kv_usage == 0


def test_a_name_may_be_used_again_after_an_abort() -> None:
    executor = Executor()
    with running(executor) as engine:
        old, new = Caller(), Caller()
        executor.gate.clear()
        engine.submit(request("x", (9, 9), max_tokens=30), old.sink)
        assert executor.waiting.wait(30)
        with pytest.raises(InvalidRequest, match="running already"):
            engine.submit(request("x"), new.sink)
        engine.abort("x")
        again = request("x", (4, 5))
        engine.submit(again, new.sink)
        executor.gate.set()
        new.wait(1)
        assert new.tokens("x") == want(again) and old.updates == []


def test_parted_siblings_meet_again() -> None:
    whole = request("m", n=3, max_tokens=12)
    with running() as engine:
        caller = Caller()
        for sibling in range(3):
            emitted = tuple(want(whole, sibling)[: 3 + sibling])
            engine.submit(
                Request(
                    id="m",
                    prompt=whole.prompt,
                    params=request(max_tokens=12).params,
                    emitted=emitted,
                    sibling=sibling,
                    epoch=2,
                ),
                caller.sink,
            )
        caller.wait(3)
        for sibling in range(3):
            assert caller.tokens("m", sibling) == want(whole, sibling)[3 + sibling :]
        assert {update.epoch for update in caller.updates} == {2}


@pytest.mark.parametrize(
    ("emitted", "params", "finish", "stop"),
    [
        ((5, EOS), {"ignore_eos": False}, FinishReason.STOP, None),
        ((5, 6), {"stop_token_ids": [6]}, FinishReason.STOP, 6),
        ((5, 6), {"max_tokens": 2}, FinishReason.LENGTH, None),
        (tuple([5] * (MAX_LEN - 3)), {"max_tokens": None}, FinishReason.LENGTH, None),
    ],
)
def test_resuming_what_had_ended(
    emitted: tuple[int, ...], params: dict[str, Any], finish: FinishReason, stop: int | None
) -> None:
    with running() as engine:
        caller = Caller()
        made = request(**params)
        engine.submit(
            Request(id="r", prompt=made.prompt, params=made.params, emitted=emitted), caller.sink
        )
        caller.wait(1)
        (update,) = caller.updates
        assert (update.tokens, update.finish, update.stop_reason) == ((), finish, stop)


def test_a_full_queue() -> None:
    executor = Executor()
    with running(executor, max_num_seqs=1, max_waiting=2) as engine:
        caller = Caller()
        executor.gate.clear()
        engine.submit(request("a"), caller.sink)
        assert executor.waiting.wait(30)
        engine.submit(request("b"), caller.sink)
        engine.submit(request("c"), caller.sink)
        with pytest.raises(Overloaded, match="at most 2 may"):
            engine.submit(request("d"), caller.sink)
        assert engine.load().waiting == 2
        engine.abort("b")
        executor.gate.set()
        caller.wait(2)
        engine.submit(request("d"), caller.sink)
        caller.wait(3)


def test_a_burst_at_an_idle_engine_is_not_waiting() -> None:
    executor = Executor()
    executor.gate.clear()
    with running(executor, max_num_seqs=8, max_waiting=1) as engine:
        caller = Caller()
        for i in range(9):
            engine.submit(request(str(i)), caller.sink)
        executor.gate.set()
        caller.wait(9)


@pytest.mark.parametrize(
    ("made", "error", "message"),
    [
        (request(prompt=()), InvalidRequest, "at least one token"),
        (request(prompt=(1, VOCAB)), InvalidRequest, "ids of this model are 0 to 49"),
        (request(prompt=(-1,)), InvalidRequest, "token id -1"),
        (request(logprobs=21), InvalidRequest, "between 0 and 20"),
        (request(prompt_logprobs=-1), InvalidRequest, "between 0 and 20"),
        (request(logit_bias={50: 1.0}), InvalidRequest, "logit_bias holds the token id 50"),
        (request(allowed_token_ids=[3, 99]), InvalidRequest, "allowed_token_ids"),
        (request(bad_words=["x"]), InvalidRequest, "bad_words_ids"),
        (request(prompt=(1,) * 65), ContextTooLong, "maximum context length is 64 tokens"),
        (request(prompt=(1,) * 64), ContextTooLong, "contains 64 input tokens"),
        (request(prompt=(1,) * 60, max_tokens=5), ContextTooLong, "requested 5 output tokens"),
        (
            Request(id="r", prompt=(1,), emitted=(2,), params=SamplingParams(n=2)),
            InvalidRequest,
            "resumed with n=1",
        ),
        (Request(id="r", prompt=(1,), adapter="a"), InvalidRequest, "not built yet"),
    ],
)
def test_refusals(made: Request, error: type[Exception], message: str) -> None:
    with running() as engine:
        with pytest.raises(error, match=message):
            engine.submit(made, Caller().sink)
        assert not engine.load().waiting


def test_room_for_output() -> None:
    assert room_for_output(10, None, 64) == 54
    assert room_for_output(10, 54, 64) == 54
    assert room_for_output(63, None, 64) == 1
    assert room_for_output(63, 0, 64) == 0


def test_no_max_tokens_means_up_to_the_context() -> None:
    with running() as engine:
        caller = Caller()
        engine.submit(request(prompt=(1, 2), max_tokens=None), caller.sink)
        caller.wait(1)
        assert len(caller.tokens("r")) == MAX_LEN - 2
        assert caller.updates[-1].finish is FinishReason.LENGTH


def test_seeds() -> None:
    first, again, other = Seeds(1), Seeds(1), Seeds(2)
    drawn = [first.draw() for _ in range(5)]
    assert drawn == [again.draw() for _ in range(5)] != [other.draw() for _ in range(5)]
    assert len(set(drawn)) == 5
    given = request(seed=0)
    assert first.give(given) is given
    assert first.give(request(seed=None)).params.seed is not None
    with running(seed=3) as one, running(seed=3) as two:
        texts = []
        for engine in (one, two):
            caller = Caller()
            engine.submit(request(seed=None), caller.sink)
            caller.wait(1)
            texts.append(caller.tokens("r"))
        assert texts[0] == texts[1]


def test_generate() -> None:
    async def consume(engine: AsyncEngine, made: Request) -> dict[int, list[int]]:
        texts: dict[int, list[int]] = {}
        async for update in engine.generate(made):
            texts.setdefault(update.sibling, []).extend(update.tokens)
        return texts

    async def main(engine: AsyncEngine) -> None:
        made = [request(str(i), (i, 1), n=1 + i % 2) for i in range(8)]
        answers = await asyncio.gather(*(consume(engine, m) for m in made))
        for m, texts in zip(made, answers, strict=True):
            assert texts == {s: want(m, s) for s in range(m.params.n)}
        with pytest.raises(ContextTooLong):
            await consume(engine, request(prompt=(1,) * 100))

    with running() as engine:
        asyncio.run(main(engine))


@pytest.mark.parametrize("how", ["cancel", "close"])
def test_a_consumer_that_goes_away_aborts(how: str) -> None:
    async def main(engine: AsyncEngine) -> None:
        begun = asyncio.Event()

        async def consume() -> None:
            updates = engine.generate(request(max_tokens=None))
            async with contextlib.aclosing(updates):  # type: ignore[type-var]
                async for _ in updates:
                    begun.set()
                    if how == "close":
                        return

        task = asyncio.create_task(consume())
        await begun.wait()
        if how == "cancel":
            task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    executor = Executor()
    with running(executor) as engine:
        collect = executor.collect

        def slowly() -> Result:
            time.sleep(0.01)
            return collect()

        executor.collect = slowly  # type: ignore[method-assign]
        asyncio.run(main(engine))
        until(lambda: engine.load().running == 0)
        counters = engine.load().counters
        assert counters is not None and counters["finished_abort"] == 1


def test_a_dying_worker_ends_every_request(caplog: pytest.LogCaptureFixture) -> None:
    executor = Executor()
    executor.gate.clear()
    with running(executor, max_num_seqs=2) as engine:
        callers = [Caller() for _ in range(4)]
        for i, caller in enumerate(callers):
            engine.submit(request(str(i), n=1 + i % 2), caller.sink)
        assert executor.waiting.wait(30)
        executor.broken = WorkerLost("rank 0 is gone")
        with caplog.at_level(logging.CRITICAL):
            executor.gate.set()
            for i, caller in enumerate(callers):
                caller.wait(1 + i % 2)
        for caller in callers:
            for update in caller.updates:
                assert update.finish is FinishReason.ERROR
                assert update.error is not None and "rank 0 is gone" in update.error
        assert "rank 0 is gone" in caplog.text
        for _ in range(2):
            with pytest.raises(EngineLost, match="rank 0 is gone"):
                engine.submit(request("late"), Caller().sink)
            with pytest.raises(EngineLost, match="rank 0 is gone"):
                engine.load()
    assert executor.closed == 1


def test_closing_ends_what_runs() -> None:
    executor = Executor()
    engine = AsyncEngine(EngineConfig(max_num_seqs=8), executor)
    engine.start()
    caller = Caller()
    executor.gate.clear()
    engine.submit(request(max_tokens=None), caller.sink)
    assert executor.waiting.wait(30)
    closer = threading.Thread(target=engine.close)
    closer.start()
    executor.gate.set()
    closer.join(30)
    assert not closer.is_alive()
    assert caller.updates[-1].finish is FinishReason.ERROR
    with pytest.raises(EngineLost, match="closed"):
        engine.submit(request("late"), caller.sink)
    engine.close()


def test_a_failing_sink_harms_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    def bad(updates: list[Update]) -> None:
        raise RuntimeError("a bug")

    with running() as engine, caplog.at_level(logging.ERROR):
        caller = Caller()
        engine.submit(request("bad", max_tokens=None), bad)
        engine.submit(request("good"), caller.sink)
        caller.wait(1)
        until(lambda: engine.load().running == 0)
        assert caller.tokens("good") == want(request("good"))
        assert "a sink failed" in caplog.text


def test_a_poisoned_row_ends_its_request_alone() -> None:
    executor = Executor()
    with running(executor) as engine:
        caller = Caller()
        executor.poisoned.add(0)
        executor.gate.clear()
        for i in range(4):
            engine.submit(request(str(i), (i, 1)), caller.sink)
        executor.gate.set()
        caller.wait(4)
        failed = [update for update in caller.updates if update.finish is FinishReason.ERROR]
        assert [update.error for update in failed] == ["poisoned"]
        for i in {0, 1, 2, 3} - {int(update.id) for update in failed}:
            assert caller.tokens(str(i)) == want(request(str(i), (i, 1)))


def test_books_are_verified_when_idle(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(engine_module, "QUIET_S", 0.01)
    engine = AsyncEngine(EngineConfig(max_num_seqs=8), Executor())
    engine.start()
    caller = Caller()
    engine.submit(request(), caller.sink)
    caller.wait(1)
    verified = threading.Event()
    verify = engine._scheduler.verify

    def count() -> None:
        verified.set()
        verify()

    monkeypatch.setattr(engine._scheduler, "verify", count)
    engine.submit(request(), caller.sink)
    caller.wait(2)
    assert verified.wait(30)

    with caplog.at_level(logging.CRITICAL):
        engine._scheduler.roster.slots.append(0)
        engine.submit(request(prompt=(1,), max_tokens=1), caller.sink)
        until(lambda: not engine._thread.is_alive())
        assert "a slot is accounted for twice" in caplog.text
    with pytest.raises(EngineLost, match="accounted for twice"):
        engine.load()
    with pytest.raises(AssertionError, match="accounted for twice"):
        engine.close()


def test_an_idle_engine_sleeps() -> None:
    with running() as engine:
        caller = Caller()
        engine.submit(request(), caller.sink)
        caller.wait(1)
        steps = engine._scheduler.counters.steps
        waits = 0
        wait = engine._wait

        def counted(quiet_s: float | None) -> bool:
            nonlocal waits
            waits += 1
            return wait(quiet_s)

        engine._wait = counted  # type: ignore[method-assign]
        time.sleep(0.2)
        assert waits <= 1 and engine._scheduler.counters.steps == steps


def test_a_failing_start_closes_the_executor() -> None:
    class Broken(Executor):
        def start(self, config: EngineConfig) -> Capacity:
            raise InvalidRequest("no model")

    executor = Broken()
    engine = AsyncEngine(EngineConfig(), executor)
    with pytest.raises(InvalidRequest, match="no model"):
        engine.start()
    assert executor.closed == 1
    engine.close()


def test_closing_while_loading() -> None:
    class Slow(Executor):
        def start(self, config: EngineConfig) -> Capacity:
            assert self.gate.wait(30)
            return super().start(config)

    executor = Slow()
    executor.gate.clear()
    engine = AsyncEngine(EngineConfig(max_num_seqs=8), executor)
    starting = threading.Thread(target=engine.start)
    starting.start()
    with pytest.raises(EngineLost, match="not started"):
        engine.load()
    engine.close()
    executor.gate.set()
    starting.join(30)
    engine._thread.join(30)
    assert executor.closed == 1
    with pytest.raises(EngineLost, match="closed"):
        engine.submit(request(), Caller().sink)
