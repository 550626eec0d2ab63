"""The arithmetic of figures, and the page that shows them."""

from __future__ import annotations

import io
import json
import math
import re
from xml.dom import minidom

import pytest
from rich.console import Console
from shoal.cluster.bench import figures
from shoal.cluster.bench.arrivals import Level
from shoal.cluster.bench.plots import Chart, Series
from shoal.cluster.bench.report import gap_percentiles, report
from shoal.cluster.bench.save import flat
from shoal.cluster.bench.slo import kept, objectives
from shoal.cluster.bench.stream import Record
from shoal.cluster.bench.table import table
from shoal.cluster.bench.traffic import Run
from shoal.cluster.bench.watch import Reading, reading


def record(first: float, *, begin: float = 0.0, error: str | None = None) -> Record:
    arrivals = [begin + first, begin + first + 0.010, begin + first + 0.030]
    return Record(
        due=begin,
        begin=begin,
        end=arrivals[-1],
        arrivals=arrivals,
        num_prompt=4,
        num_cached=1,
        num_output=5,
        expected=6,
        by_chunks=False,
        error=error,
    )


def a_run(*records: Record, level: Level | None = None, duration_s: float = 2.0) -> Run:
    return Run(
        level=level or Level(concurrency=2),
        records=records,
        duration_s=duration_s,
        client_cpu_s=0.75 * duration_s,
        readings=(Reading(0.1, 0.2, 2, 1), Reading(0.6, 0.4, 1, 0)),
    )


RUN = a_run(record(0.1), record(0.2), record(0.3), record(0.9, error="no"))
NOTHING = Run(level=Level(concurrency=1), records=(), duration_s=1.0, client_cpu_s=0.0)


def test_the_figures() -> None:
    found = figures.summary(RUN)
    assert (found["completed"], found["failed"], found["errors"]) == (3, 1, ["no"])
    assert (found["output_tokens_per_s"], found["total_tokens_per_s"]) == (7.5, 13.5)
    expected = {"mean": 200, "std": 81.64965809, "p50": 200, "p90": 280, "p99": 298}
    assert found["ttft_ms"] == pytest.approx(expected)
    assert found["tpot_ms"]["p50"] == pytest.approx(30 / 4)
    assert found["itl_ms"]["p50"] == pytest.approx(15)
    assert found["e2e_ms"]["p90"] == pytest.approx(310)
    assert (found["ended_early"], found["cached_tokens"], found["most_at_once"]) == (3, 3, 4)
    assert math.isclose(found["client_cpu_share"], 0.75)
    assert found["kv_usage"] == pytest.approx({"mean": 0.3, "max": 0.4})
    assert found["goodput_per_s"] is None
    told = figures.warnings([found])
    assert told[0] == "no" and "shorter" in told[1] and "busy" in told[2]
    table([found, figures.summary(NOTHING)])


def test_tokens_counted_by_chunks_are_told_of() -> None:
    answer = record(0.1)
    answer.by_chunks, answer.num_prompt, answer.num_cached = True, 0, 0
    found = figures.summary(a_run(answer, record(0.2)))
    assert (found["counted_by_chunks"], found["ended_early"]) == (1, 1)
    assert any("counted by chunks" in line for line in figures.warnings([found]))
    unknown = figures.summary(a_run(answer))
    assert unknown["mean_prompt_tokens"] is None and unknown["ended_early"] == 0
    table([unknown])


def test_nothing_has_no_percentiles() -> None:
    found = figures.summary(NOTHING, percents=(50, 99.9))
    assert found["ttft_ms"] == {"mean": None, "std": None, "p50": None, "p99.9": None}


@pytest.mark.parametrize(
    ("percent", "value"), [(0, 1.0), (25, 1.75), (50, 2.5), (90, 3.7), (100, 4.0)]
)
def test_percentiles_lie_between_the_nearest(percent: float, value: float) -> None:
    assert figures.percentile([1.0, 2.0, 3.0, 4.0], percent) == pytest.approx(value)
    assert figures.percentile([7.0], percent) == 7.0


def test_goodput_counts_what_keeps_every_objective() -> None:
    assert objectives(["ttft:250", "tpot:8,e2el:400"]) == {"ttft": 250, "tpot": 8, "e2el": 400}
    assert kept(record(0.2), {"ttft": 250, "tpot": 7.5, "e2el": 230.1})
    assert not kept(record(0.2), {"ttft": 250, "tpot": 7.4})
    found = figures.summary(RUN, objectives={"ttft": 250})
    assert (found["goodput_per_s"], found["requests_per_s"]) == (1.0, 1.5)
    single = Record(begin=0.0, end=0.1, arrivals=[0.1], num_output=1)
    assert kept(single, {"tpot": 0.001})


def test_late_starts_of_an_open_loop_are_told() -> None:
    late = record(0.1, begin=0.5)
    late.due = 0.0
    found = figures.summary(a_run(late, level=Level(rate=2.0)))
    assert found["late_ms"]["mean"] == found["late_ms"]["p99"] == pytest.approx(500)
    assert any("later than the rate" in line for line in figures.warnings([found]))
    closed = figures.summary(a_run(late))
    assert closed["late_ms"] is None
    shown = io.StringIO()
    Console(width=120, file=shown).print(table([found, closed], percents=(50,)))
    for name in ("mean", "p99"):
        assert re.search(rf"started late, {name}, ms +│ +500\.0 │ +- │", shown.getvalue())


def test_goodput_counts_from_when_a_request_was_due() -> None:
    late = record(0.1, begin=0.5)
    late.due, late.turn = 0.0, 0
    for objective, limit in (("ttft", 100), ("e2el", 130)):
        for level, extra_ms in ((Level(rate=2.0), 500), (Level(concurrency=1), 0)):
            run = a_run(late, level=level)
            for slack, good in ((-1, 0), (1, 1)):
                found = figures.summary(run, objectives={objective: limit + extra_ms + slack})
                assert found["goodput_per_s"] * run.duration_s == good
            assert found["ttft_ms"]["mean"] == pytest.approx(100)


def test_over_time() -> None:
    found = figures.over_time(a_run(record(0.1), record(0.5, begin=1.2)))
    assert found["seconds"] == [1.0, 2.0]
    assert found["chunks_per_s"] == [3.0, 3.0]
    assert found["under_way"] == pytest.approx([0.13, 0.53])
    assert found["kv_usage"] == [0.2, 0.4]


def test_a_part_of_a_second_is_a_rate_too() -> None:
    answers = [record(0.1), record(0.1)]
    answers[1].end = answers[0].end = 0.25
    run = a_run(*answers, duration_s=0.25)
    found = figures.over_time(run)
    assert found["seconds"] == [0.25]
    chunks = sum(len(answer.arrivals) for answer in answers)
    assert found["chunks_per_s"] == pytest.approx([chunks / 0.25])
    assert found["under_way"] == pytest.approx([2.0])


def test_the_page_tells_what_was_found_cached() -> None:
    cached = record(0.2)
    cached.num_prompt, cached.num_cached = 8, 6
    run = a_run(cached)
    drawn = {"requests": figures.each(run), "over_time": figures.over_time(run)}
    level = figures.summary(run) | drawn | {"gap_percentiles_ms": []}
    named = {name: "x" for name in ("date", "command", "url", "model")}
    page = report({**named, "workload": {}, "notes": [], "levels": [level]})
    assert "<td>of all, found cached</td><td>75%</td>" in page


def test_what_vllm_calls_them() -> None:
    found = flat("m", "2026-01-02T03:04:05+00:00", figures.summary(RUN))
    assert (found["completed"], found["output_throughput"], found["date"]) == (
        3,
        7.5,
        "20260102-030405",
    )
    assert found["median_ttft_ms"] == found["p50_ttft_ms"] == pytest.approx(200)
    assert found["p99_e2el_ms"] > found["mean_e2el_ms"] > 0
    assert found["request_rate"] == "inf"


def test_gauges_of_any_server() -> None:
    text = (
        '# HELP x\nshoal_kv_cache_usage_perc{replica="0"} 0.5\n'
        'shoal_kv_cache_usage_perc{replica="1"} 0.75\n'
        'vllm:kv_cache_usage_perc{replica="0"} 0.5\nshoal_num_requests_running{a="b"} 2.0\n'
        'shoal_num_requests_running{a="c"} 3\nshoal_num_requests_waiting 1e1\n'
    )
    assert reading(text, 1.0) == Reading(1.0, 0.75, 5.0, 10.0)
    assert reading("vllm:gpu_cache_usage_perc 0.25\n", 2.0) == Reading(2.0, 0.25, 0.0, 0.0)
    assert reading("process_cpu_seconds_total 3\n", 0.0) is None


def test_gauges_that_are_no_numbers_are_left_out() -> None:
    text = "shoal_kv_cache_usage_perc +Inf\nshoal_num_requests_running NaN\n"
    assert reading(text + "shoal_num_requests_waiting none\n", 1.0) is None
    assert reading(text + "shoal_num_requests_waiting 2\n", 1.0) == Reading(1.0, 0.0, 0.0, 2.0)


def test_the_page_holds_the_data_and_needs_no_network() -> None:
    levels = []
    for run in (RUN, a_run(record(0.2), level=Level(concurrency=4))):
        ordered = sorted(gap for r in run.records for gap in figures.gaps(r))
        levels.append(
            figures.summary(run, objectives={"ttft": 250})
            | {
                "requests": figures.each(run),
                "over_time": figures.over_time(run),
                "gap_percentiles_ms": gap_percentiles(ordered),
            }
        )
    found = {
        "date": "today",
        "command": "shoal bench serve <!--<script </script>",
        "url": "a server",
        "model": "<m>",
        "workload": {"dataset": "random"},
        "notes": ["a & b"],
        "levels": levels,
    }
    page = report(found)
    assert not re.search(r"https?:|//|src=|href=|@import|url\(", page)
    held = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert held is not None and json.loads(held[1]) == json.loads(json.dumps(found))
    assert "<" not in held[1]
    assert "&lt;m&gt; at a server" in page and "a &amp; b" in page
    charts = re.findall(r"<svg.*?</svg>", page, re.S)
    assert len(charts) >= 12
    for chart in charts:
        minidom.parseString(chart)


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(
    "points",
    [[], [(1.0, 1.0)], [(0.0, 0.0), (5.0, 3.0)], [(1.0, 0.001), (1000.0, 5e6)], [(3.0, 7.0)] * 3],
)
def test_charts_stay_inside_their_frame(points: list[tuple[float, float]], log: bool) -> None:
    chart = Chart(title="t", x="x", y="y", series=[Series("s", points)], log_x=log, log_y=log)
    drawing = minidom.parseString(chart.svg()).documentElement
    assert drawing is not None
    for dot in drawing.getElementsByTagName("circle"):
        assert 0 <= float(dot.getAttribute("cx")) <= 560
        assert 0 <= float(dot.getAttribute("cy")) <= 300
