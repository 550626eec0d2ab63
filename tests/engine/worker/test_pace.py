"""How long a step may be silent, by what was measured."""

from __future__ import annotations

import pytest
from shoal.engine.worker import progress
from shoal.engine.worker.pace import Pace
from shoal.engine.worker.progress import Progress


def test_nothing_is_expected_before_anything_was_measured() -> None:
    assert Pace().expected_s(1000) == 0.0


def test_a_step_is_expected_to_take_what_the_next_larger_one_took() -> None:
    pace = Pace()
    pace.enter(16, 0.1)
    pace.enter(2048, 3.0)
    assert pace.expected_s(1) == pace.expected_s(16) == pace.expected_s(31) == 0.1
    assert pace.expected_s(32) == pace.expected_s(2048) == 3.0
    assert pace.expected_s(8192) == 12.0  # in proportion


def test_a_long_silence_fades_with_steps_of_its_size() -> None:
    pace = Pace()
    pace.enter(8, 10.0)
    pace.enter(1024, 2.0)
    for _ in range(60):
        pace.enter(8, 0.1)
    assert pace.expected_s(8) == pytest.approx(0.1)
    assert pace.expected_s(1024) == 2.0


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


def test_the_longest_time_between_two_words_counts_and_waiting_for_others_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    made = Progress()
    for step in range(2):
        made.begin(step, 64)
        clock.now += 1.0
        made.at("waiting for the stage before")
        since = clock.now
        clock.now += 500.0
        made.waited(since)
        for seconds in (1.0, 4.0, 2.0):
            made.at("layer")
            clock.now += seconds
        assert made.expected_s == (4.0 if step else 0.0)
        made.done(step)
        assert made.expected_s == 0.0
        clock.now += 1000.0  # between steps nobody waits
    assert made.timeline[-1] == (1, 1608.0, 2116.0, 500.0)
