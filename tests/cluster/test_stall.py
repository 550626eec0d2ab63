"""What counts as standing still, and what does not."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from shoal.cluster import stall
from shoal.cluster.stall import StallWatch, patience_s
from shoal.engine.config import from_keys
from shoal.engine.engine import AsyncEngine
from shoal.engine.request import Load, RankState, Request, SamplingParams, Update
from torch.nn.modules.module import register_module_forward_pre_hook


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now

    def watched(self, watch: StallWatch, load: Load, seconds: float) -> str | None:
        """What it says after so long, having been looked at all the while."""
        until = self.now + seconds
        while self.now < until:
            self.now = min(self.now + 0.5, until)
            said = watch.look(load)
        return said


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(stall, "time", made)
    return made


def rank(number: int = 0) -> RankState:
    return RankState(number, None, 70 + number, "cpu", 7, "layer 3", 12, 0.5)


def busy(ticks: int, *ranks: RankState) -> Load:
    return Load(running=2, waiting=1, ticks=ticks, ranks=ranks)


def test_work_without_a_tick_is_a_stall_and_its_rank_is_named(clock: Clock) -> None:
    watch = StallWatch(10.0)
    assert watch.look(busy(1, rank())) is None
    assert clock.watched(watch, busy(1, rank()), 10.0) is None
    blame = clock.watched(watch, busy(1, rank()), 0.5)
    assert blame == (
        "no progress for 10.5 s with 2 running and 1 waiting requests: "
        "rank 0 (pid 70) stopped at step 7, layer 3"
    )


def test_ticks_and_idleness_are_none(clock: Clock) -> None:
    watch = StallWatch(10.0)
    for ticks in range(5):
        assert clock.watched(watch, busy(ticks), 9.0) is None
    for _ in range(3):
        assert clock.watched(watch, Load(ticks=4), 100.0) is None
    assert clock.watched(watch, busy(4), 11.0) is not None
    assert clock.watched(StallWatch(0), busy(4), 100.0) is None


def test_ranks_of_several_speak_first(clock: Clock) -> None:
    watch = StallWatch(10.0)
    ranks = rank(0), rank(1)
    watch.look(busy(1, *ranks))
    assert clock.watched(watch, busy(1, *ranks), 11.0) is None
    assert "rank 1 (pid 71)" in str(clock.watched(watch, busy(1, *ranks), 2.0))


def test_a_process_that_was_stopped_itself_has_seen_no_stall(clock: Clock) -> None:
    watch = StallWatch(10.0)
    watch.look(busy(1))
    for _ in range(9):
        clock.now += 600.0
        assert watch.look(busy(1)) is None
    assert clock.watched(watch, busy(1), 2.0) is not None


def test_a_step_may_take_twenty_times_as_long_as_expected(clock: Clock) -> None:
    watch = StallWatch(10.0)
    slow = busy(1, rank()._replace(expected_s=3.0))
    watch.look(slow)
    assert clock.watched(watch, slow, 59.0) is None
    assert "no progress for 61.0 s" in str(clock.watched(watch, slow, 2.0))
    assert patience_s(10.0, 0.4) == 10.0


def test_a_long_prompt_is_no_stall(tiny_model: Path) -> None:
    """A real engine, whose layers are slow: six of them take more time than one may.

    They are called one by one, since a recorded step would not call what makes them slow. A layer
    lasts until it was looked at: of two looks that end while it runs, one also began then.
    """
    bound_s, layer_s = 5.0, 1.0
    keys = {"threads": 1, "num_gpu_blocks_override": 64, "max_model_len": 512}
    keys["enforce_eager"] = True
    engine = AsyncEngine(from_keys({"model": str(tiny_model), "dtype": "float32", **keys}))
    engine.start()
    watch, words, looks, ended = StallWatch(bound_s), set(), [0], threading.Event()

    def slow(module: Any, _: Any) -> None:
        if type(module).__name__ == "PreNormLayer":
            before = looks[0]
            time.sleep(layer_s)
            while looks[0] < before + 2:
                time.sleep(0.01)

    def sink(updates: list[Update]) -> None:
        if any(update.finish for update in updates):
            ended.set()

    hook = register_module_forward_pre_hook(slow)
    try:
        began = time.monotonic()
        params = SamplingParams(max_tokens=1, temperature=0)
        engine.submit(Request(id="a", prompt=tuple(range(5, 405)), params=params), sink)
        while not ended.wait(0.05):
            load = engine.load()
            assert watch.look(load) is None
            words.update(rank.operation for rank in load.ranks)
            looks[0] += 1
        assert time.monotonic() - began > bound_s, "it was not slow"
        assert {f"layer {i}" for i in range(5)} <= words
    finally:
        looks[0] += 100
        hook.remove()
        engine.close()


def test_stacks_name_threads_and_functions() -> None:
    assert "thread MainThread" in stall.stacks()
    assert "in test_stacks_name_threads_and_functions" in stall.stacks()
