"""The engine's thread, over the fake model of the books tests."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from dataclasses import replace

import pytest
from shoal.engine import engine as engine_module
from shoal.engine.config import EngineConfig
from shoal.engine.engine import AsyncEngine
from shoal.engine.errors import ContextTooLong, EngineLost, InvalidRequest, WorkerLost, WorkerSilent
from shoal.engine.executor import Capacity
from shoal.engine.plan import Result
from shoal.engine.request import FinishReason, Request, Update

from .scripted import Caller, Executor, request, running, until, want


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


@pytest.mark.parametrize("depth", [1, 2])
def test_a_rehearsal_leaves_no_trace(depth: int) -> None:
    engine = AsyncEngine(EngineConfig(max_num_seqs=8), Executor(depth), rehearses=True)
    engine.start()
    try:
        load = engine.load()
        assert load.ticks > 0 and load.counters is not None and not any(load.counters.values())
        assert (load.running, load.waiting, load.tokens, load.kv_usage) == (0, 0, 0, 0.0)
        caller = Caller()
        made = [request(f"r{number}", max_tokens=20) for number in range(8)]
        for one in made:
            engine.submit(one, caller.sink)
        caller.wait(len(made))
        assert all(caller.tokens(one.id) == want(one) for one in made)
    finally:
        engine.close()


@pytest.mark.parametrize(("streams", "num_steps"), [(True, 10), (False, 1)])
def test_prompts_have_all_of_a_step_where_nobody_streams(streams: bool, num_steps: int) -> None:
    class Parted(Executor):
        def start(self, config: EngineConfig) -> Capacity:
            return replace(super().start(config), prompt_tokens=4)

    engine, caller = AsyncEngine(EngineConfig(), Parted(), streams=streams), Caller()
    engine.start()
    try:
        engine.submit(request("a", tuple(range(1, 41)), max_tokens=1), caller.sink)
        caller.wait(1)
        assert (engine.load().counters or {})["steps"] == num_steps
    finally:
        engine.close()


def test_a_sink_gets_one_batch_a_step() -> None:
    executor = Executor()
    with running(executor) as engine:
        one, other = Caller(), Caller()
        executor.gate.clear()
        engine.submit(request("first", max_tokens=2), one.sink)
        assert executor.waiting.wait(60)
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
        assert executor.waiting.wait(60)
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
        assert executor.waiting.wait(60)
        with pytest.raises(InvalidRequest, match="running already"):
            engine.submit(request("x"), new.sink)
        engine.abort("x")
        again = request("x", (4, 5))
        engine.submit(again, new.sink)
        executor.gate.set()
        new.wait(1)
        assert new.tokens("x") == want(again) and old.updates == []


def test_a_beam_search_shares_its_name_with_nobody() -> None:
    """It has more sequences than answers."""
    executor = Executor()
    with running(executor) as engine:
        caller = Caller()
        executor.gate.clear()
        search = request("x", max_tokens=20, use_beam_search=True, best_of=3, n=2, temperature=0.0)
        engine.submit(replace(request("y", max_tokens=20), sibling=2), caller.sink)
        engine.submit(search, caller.sink)
        assert executor.waiting.wait(60)
        with pytest.raises(InvalidRequest, match="running already"):
            engine.submit(replace(search, id="y"), caller.sink)
        engine.abort("x", 0)
        with pytest.raises(InvalidRequest, match="running already"):
            engine.submit(request("x", max_tokens=20), caller.sink)
        executor.gate.set()
        caller.wait(2)


def test_a_name_used_again_while_the_inbox_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the first one still brings is not given to the second."""
    with running() as engine:
        old, new = Caller(), Caller()
        again = request("x", (4, 5))
        add = engine._loop.add

        def meanwhile(made: Request) -> None:
            monkeypatch.undo()
            add(made)
            engine.abort("x")
            engine.submit(again, new.sink)

        monkeypatch.setattr(engine._loop, "add", meanwhile)
        engine.submit(request("x", (9, 9), max_tokens=30), old.sink)
        new.wait(1)
        assert new.tokens("x") == want(again) and old.updates == []


def test_a_name_used_again_after_the_abort_of_what_had_ended() -> None:
    executor = Executor()
    with running(executor) as engine:
        old, new, busy = Caller(), Caller(), Caller()
        executor.gate.clear()
        engine.submit(request("busy", max_tokens=1), busy.sink)
        assert executor.waiting.wait(60)
        whole = request("x", max_tokens=2)
        done = Request(id="x", prompt=whole.prompt, params=whole.params, emitted=(5, 6))
        engine.submit(done, old.sink)
        engine.abort("x")
        engine.submit(whole, new.sink)
        executor.gate.set()
        new.wait(1)
        assert new.tokens("x") == want(whole) and old.updates == []


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
        assert executor.waiting.wait(60)
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


def test_whether_a_rank_was_stuck_or_silent_is_told() -> None:
    executor = Executor()
    executor.broken = WorkerSilent("rank 0 is silent")
    with running(executor, max_num_seqs=2) as engine:
        caller = Caller()
        engine.submit(request("a"), caller.sink)
        caller.wait(1)
        with pytest.raises(WorkerSilent, match="rank 0 is silent"):
            engine.load()


def test_closing_ends_what_runs() -> None:
    executor = Executor()
    engine = AsyncEngine(EngineConfig(max_num_seqs=8), executor)
    engine.start()
    caller = Caller()
    executor.gate.clear()
    engine.submit(request(max_tokens=None), caller.sink)
    assert executor.waiting.wait(60)
    closer = threading.Thread(target=engine.close)
    closer.start()
    executor.gate.set()
    closer.join(60)
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
    assert verified.wait(60)

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
            assert self.gate.wait(60)
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
    starting.join(60)
    engine._thread.join(60)
    assert executor.closed == 1
    with pytest.raises(EngineLost, match="closed"):
        engine.submit(request(), Caller().sink)
