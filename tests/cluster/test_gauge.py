"""What a gauge adds to an engine's sinks, and what it forgets."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from shoal.cluster.fleet import Reading
from shoal.cluster.gauge import Gauge
from shoal.engine.errors import Overloaded
from shoal.engine.holdings import Holdings
from shoal.engine.request import FinishReason, Load, Request, SamplingParams, StepCost, Update

Sink = Callable[[list[Update]], None]


class Engine:
    """Remembers who was to be told."""

    def __init__(self) -> None:
        self.sinks: dict[str, Sink] = {}
        self.full = False
        self.holdings = Holdings(1)
        self.step_cost: StepCost | None = None

    def submit(self, request: Request, sink: Sink) -> None:
        if self.full:
            raise Overloaded("no room")
        self.sinks[request.id] = sink

    def abort(
        self, id: str, sibling: int | None = None, reason: FinishReason = FinishReason.ABORT
    ) -> None:
        pass

    def load(self) -> Load:
        return Load(running=len(self.sinks), step_cost=self.step_cost)


def request(id: str) -> Request:
    return Request(id=id, prompt=(1, 2), params=SamplingParams(seed=0))


def test_requests_of_one_gateway_are_told_at_once() -> None:
    """Engines hand over a step by sink; a gauge must not make many of one."""
    engine, told = Engine(), []
    gauge = Gauge(engine)
    for number in range(8):
        gauge.submit(request(f"r{number}"), told.append)
    gauge.submit(request("other"), lambda updates: None)
    assert len(set(map(id, engine.sinks.values()))) == 2
    engine.sinks["r3"]([Update("r3", 0, (5,))])
    assert told == [[Update("r3", 0, (5,))]]


@pytest.mark.parametrize("sibling", [None, 0])
def test_what_left_before_its_first_token_does_not_queue(sibling: int | None) -> None:
    engine = Engine()
    gauge = Gauge(engine)
    gauge.submit(request("gone"), lambda updates: None)
    assert gauge.report()["queue_s"] > 0
    gauge.abort("gone", sibling)
    assert gauge.report()["queue_s"] == 0


def test_what_was_refused_does_not_queue() -> None:
    engine = Engine()
    engine.full = True
    gauge = Gauge(engine)
    with pytest.raises(Overloaded):
        gauge.submit(request("refused"), lambda updates: None)
    assert gauge.report()["queue_s"] == 0


def test_the_wait_for_a_first_token_is_told_once() -> None:
    engine = Engine()
    gauge = Gauge(engine)
    gauge.submit(request("r"), lambda updates: None)
    engine.sinks["r"]([Update("r", 0, (5,))])
    assert gauge.report()["ttft_s"] > 0
    engine.sinks["r"]([Update("r", 0, (6,))])
    found = gauge.report()
    assert found["ttft_s"] == found["queue_s"] == 0


def test_a_report_is_a_reading_with_the_cost_of_a_step_once_it_is_known() -> None:
    engine = Engine()
    gauge = Gauge(engine)
    assert Reading(**gauge.report())[-2:] == (0.0, 0.0)
    engine.step_cost = StepCost(0.01, 0.002)
    assert Reading(**gauge.report())[-2:] == (0.01, 0.002)
