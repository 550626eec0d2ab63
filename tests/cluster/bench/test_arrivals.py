"""When requests start."""

from __future__ import annotations

import asyncio
import json
import math
import statistics
from itertools import pairwise
from random import Random
from typing import Any

import pytest
from shoal.cluster.bench.arrivals import UNBOUNDED, Level, Ramp, levels, starts
from shoal.cluster.bench.talks import once
from shoal.cluster.bench.traffic import drive
from shoal.engine.errors import ConfigError


def intervals(level: Level, num: int = 4000) -> list[float]:
    due = starts(level, num, Random(1))
    assert due[0] == 0.0 and due == sorted(due)
    return [b - a for a, b in pairwise(due)]


def test_a_closed_loop_is_due_at_once() -> None:
    assert starts(Level(concurrency=3), 4, Random(0)) == [0.0] * 4
    assert starts(Level(rate=2.0), 0, Random(0)) == []
    assert starts(Level(rate=2.0), 1, Random(0)) == [0.0]


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 16.0])
def test_the_spread_of_intervals_is_the_burstiness(burstiness: float) -> None:
    found = intervals(Level(rate=5.0, burstiness=burstiness))
    mean = statistics.fmean(found)
    assert mean == pytest.approx(0.2, rel=1e-6)
    assert (mean / statistics.pstdev(found)) ** 2 == pytest.approx(burstiness, rel=0.2)


@pytest.mark.parametrize("strategy", ["linear", "exponential"])
def test_a_rate_rises_from_start_to_end(strategy: str) -> None:
    ramp = Ramp(strategy=strategy, start=2.0, end=32.0)
    found = intervals(Level(ramp=ramp))
    for first in (0, 1000, 2000, 3000):
        asked = [1 / ramp.rate(i / 4000) for i in range(first, first + 999)]
        assert sum(found[first : first + 999]) == pytest.approx(sum(asked), rel=0.15)
    middle = 17.0 if strategy == "linear" else 8.0
    assert ramp.rate(0.5) == pytest.approx(middle)


def test_draws_are_the_seeds() -> None:
    level = Level(rate=1.0)
    assert starts(level, 5, Random(3)) == starts(level, 5, Random(3))
    assert starts(level, 5, Random(3)) != starts(level, 5, Random(4))


def test_levels_as_they_are_written() -> None:
    assert [level.concurrency for level in levels("1,8,32", None)] == [1, 8, 32]
    assert levels(None, None) == (Level(concurrency=8),)
    assert levels(None, "2.0") == (Level(concurrency=UNBOUNDED, rate=2.0),)
    assert levels("4", "2") == (Level(concurrency=4, rate=2.0),)
    assert [level.rate for level in levels(None, "0.5,1")] == [0.5, 1.0]
    assert levels(None, "inf")[0].closed and levels(None, "inf")[0].concurrency == UNBOUNDED
    assert levels("4", "inf") == levels("4", None)
    assert levels(None, None, ramp=Ramp(strategy="linear", start=1, end=2))[0].concurrency > 8
    for wrong in ("0", "", "1,,2", "-1"):
        with pytest.raises(ConfigError):
            levels(wrong, None)
    for wrong in ("0", "-1", "fast"):
        with pytest.raises(ConfigError):
            levels(None, wrong)
    with pytest.raises(ConfigError):
        levels(None, "1", ramp=Ramp(strategy="linear", start=1, end=2))
    for end in (2, math.inf, math.nan):
        with pytest.raises(ConfigError):
            Ramp(strategy="linear", start=3, end=end)


def test_a_rate_does_not_wait_for_answers(server: Any) -> None:
    body = json.dumps({"prompt": [1], "max_tokens": 400}).encode()
    level = Level(rate=1000.0)
    talks = [once(body) for _ in range(8)]
    run = asyncio.run(drive(server.url + "/v1/completions", level, talks, headers={}))
    assert [record.error for record in run.records] == [None] * 8
    assert server.most_at_once > 1
    begins = sorted(record.begin for record in run.records)
    assert len(set(begins)) == 8
    assert all(record.begin >= record.due for record in run.records)


def test_titles() -> None:
    assert Level(concurrency=8).title == "8 at once"
    assert Level(rate=2.0).title == "2 requests/s"
    bursts = Level(concurrency=4, rate=2.0, burstiness=0.5)
    assert bursts.title == "2 requests/s, burstiness 0.5, 4 at once at most"
    assert Level(ramp=Ramp(strategy="linear", start=1, end=4)).title == "1 to 4 requests/s"
    rising = Level(ramp=Ramp(strategy="linear", start=1, end=4), burstiness=0.5)
    assert rising.title == "1 to 4 requests/s, burstiness 0.5"
    assert levels(None, "inf")[0].title == "all at once"
