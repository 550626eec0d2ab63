"""What counts as standing still, and what does not."""

from __future__ import annotations

import pytest
from shoal.cluster import stall
from shoal.cluster.stall import StallWatch
from shoal.engine.request import Load, RankState


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


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
    clock.now += 10.0
    assert watch.look(busy(1, rank())) is None
    clock.now += 0.5
    blame = watch.look(busy(1, rank()))
    assert blame == (
        "no progress for 10.5 s with 2 running and 1 waiting requests: "
        "rank 0 (pid 70) stopped at step 7, layer 3"
    )


def test_ticks_and_idleness_are_none(clock: Clock) -> None:
    watch = StallWatch(10.0)
    for ticks in range(5):
        assert watch.look(busy(ticks)) is None
        clock.now += 9.0
    for _ in range(3):
        assert watch.look(Load(ticks=4)) is None
        clock.now += 100.0
    assert watch.look(busy(4)) is not None
    assert StallWatch(0).look(busy(4)) is None


def test_ranks_of_several_speak_first(clock: Clock) -> None:
    watch = StallWatch(10.0)
    ranks = rank(0), rank(1)
    watch.look(busy(1, *ranks))
    clock.now += 11.0
    assert watch.look(busy(1, *ranks)) is None
    clock.now += 2.0
    assert "rank 1 (pid 71)" in str(watch.look(busy(1, *ranks)))


def test_stacks_name_threads_and_functions() -> None:
    assert "thread MainThread" in stall.stacks()
    assert "in test_stacks_name_threads_and_functions" in stall.stacks()
