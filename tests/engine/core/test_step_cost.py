"""What a step costs, learned by the loop from the steps that it does."""

from __future__ import annotations

from typing import Any

import pytest
from shoal.engine import loop
from shoal.engine.config import EngineConfig
from shoal.engine.core.roster import Counters
from shoal.engine.core.scheduler import Scheduler
from shoal.engine.core.step_cost import SAMPLES, StepCosts
from shoal.engine.loop import Loop
from shoal.engine.plan import Result
from shoal.engine.request import Request, SamplingParams

from .fake import FakeExecutor, capacity

FIXED_S, STREAM_S, TOKEN_S = 0.010, 0.002, 0.5


class Clock:
    """Stands in for `time` in the loop."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


class Timed(FakeExecutor):
    """The fake model; each plan takes its cost, and a prompt's tokens cost much more."""

    clock: Clock

    def collect(self) -> Result:
        rows = self.plans[0].rows
        prompt = sum(row.num_tokens - 1 for row in rows)
        self.clock.now += FIXED_S + STREAM_S * len(rows) + TOKEN_S * prompt
        return super().collect()


def made(monkeypatch: pytest.MonkeyPatch, **executor: Any) -> Loop:
    clock = Clock()
    monkeypatch.setattr(loop, "time", clock)
    room = capacity(num_blocks=400, max_model_len=64)
    timed = Timed(room, **executor)
    timed.clock = clock
    config = EngineConfig(max_num_seqs=32)
    scheduler = Scheduler(config, room, depth=timed.depth, resident=timed.resident)
    return Loop(scheduler, timed)


def work(loop: Loop, num_streams: int) -> None:
    for number in range(num_streams):
        params = SamplingParams(max_tokens=20, seed=number, ignore_eos=True)
        loop.add(Request(id=f"{number}", prompt=(1, 2, 3, number), params=params))
    while loop.unfinished:
        loop.step()


def test_a_rehearsal_tells_a_lone_stream_s_cost_and_is_counted_nowhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = made(monkeypatch)
    loop.rehearse()
    assert loop.costs.known() is None, "one pace cannot tell two costs"
    assert loop.scheduler.counters == Counters()
    loop.scheduler.verify()
    work(loop, 24)
    assert loop.costs.known() == pytest.approx((FIXED_S, STREAM_S))
    assert loop.scheduler.counters.generation_tokens == 24 * 20


def test_steps_with_prompts_and_rests_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = made(monkeypatch)
    for num_streams in (1, 8, 2, 30):
        work(loop, num_streams)
        loop.executor.clock.now += 1000.0  # type: ignore[attr-defined]
    assert loop.costs.known() == pytest.approx((FIXED_S, STREAM_S))


def test_streams_that_take_turns_in_several_plans_get_a_token_a_round(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Three plans under way with a third of the streams each: a round is three steps."""
    loop = made(monkeypatch, depth=3, resident=False)
    work(loop, 30)
    work(loop, 3)
    cost = loop.costs.known()
    assert cost is not None
    assert cost == pytest.approx((3 * FIXED_S, STREAM_S), rel=0.25)


def test_few_samples_or_streams_about_as_many_tell_nothing() -> None:
    costs = StepCosts()
    for _ in range(SAMPLES):
        costs.enter(10, 0.03)
        costs.enter(30, 0.07)
    assert costs.known() is None
    for _ in range(SAMPLES - 1):
        costs.enter(1, 0.012)
    assert costs.known() is None
    costs.enter(1, 0.012)
    assert costs.known() == pytest.approx((0.01, 0.002))


def test_a_pause_that_has_nothing_to_do_with_the_step_counts_little() -> None:
    costs = StepCosts()
    for number in range(40):
        costs.enter(1, 5.0 if number % 20 == 7 else 0.012)
        costs.enter(30, 5.0 if number % 20 == 3 else 0.07)
    assert costs.known() == pytest.approx((0.01, 0.002), rel=0.1)


def test_streams_that_cost_nothing_are_no_negative_cost() -> None:
    costs = StepCosts()
    for _ in range(SAMPLES):
        costs.enter(1, 0.02)
        costs.enter(30, 0.01)
    cost = costs.known()
    assert cost is not None and cost.stream_s == 0.0 and cost.fixed_s > 0
