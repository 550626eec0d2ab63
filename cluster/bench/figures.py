"""The figures of one level: what users feel, and what the machine yields."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from .arrivals import Level
from .slo import kept, time_per_token, time_to_first
from .stream import Record
from .traffic import Run

PERCENTS: tuple[float, ...] = (50, 90, 99)
SECONDS_A_POINT = 1.0
LATE_MS = 10.0
"""Requests of an open loop that start later than that on average are told of."""


def summary(
    run: Run,
    *,
    percents: Sequence[float] = PERCENTS,
    objectives: Mapping[str, float] | None = None,
    whole_answers: bool = True,
) -> dict[str, Any]:
    """One level in figures; times in milliseconds.

    TTFT: from the sending to the first output. TPOT: a request's mean time an output token after
    that. ITL: between chunks of output. E2E: from the sending to the end. `late_ms`: how long after
    their moments an open loop's requests were sent; its goodput counts that in. Failed requests
    count for nothing but `failed`. `whole_answers`: an answer shorter than asked for is told of.
    `mean_prompt_tokens` is None where nobody knows them.
    """
    done = [record for record in run.records if succeeded(record)]
    output = sum(record.num_output for record in done)
    prompt = sum(record.num_prompt for record in done)
    errors = sorted({record.error for record in run.records if record.error})
    level, duration = run.level, run.duration_s
    good = [record for record in done if kept(record, objectives or {}, _late(record, level))]
    return {
        "title": level.title,
        "max_concurrency": level.concurrency if level.bounded else None,
        "request_rate": level.rate if math.isfinite(level.rate) else None,
        "ramp_up": dataclasses.asdict(level.ramp) if level.ramp else None,
        "burstiness": None if level.closed else level.burstiness,
        "completed": len(done),
        "failed": len(run.records) - len(done),
        "errors": errors,
        "ended_early": sum(_ended_early(r) for r in done) if whole_answers else 0,
        "counted_by_chunks": sum(record.by_chunks for record in done),
        "duration_s": duration,
        "requests_per_s": len(done) / duration,
        "goodput_per_s": len(good) / duration if objectives else None,
        "objectives_ms": dict(objectives or {}),
        "output_tokens_per_s": output / duration,
        "total_tokens_per_s": (prompt + output) / duration,
        "prompt_tokens": prompt,
        "cached_tokens": sum(record.num_cached for record in done),
        "output_tokens": output,
        "mean_prompt_tokens": prompt / len(done) if prompt else None,
        "mean_output_tokens": output / max(len(done), 1),
        "most_at_once": _most_at_once(run.records),
        "ttft_ms": spread([time_to_first(record) for record in done], percents),
        "tpot_ms": spread([time_per_token(r) for r in done if r.num_output > 1], percents),
        "itl_ms": spread([gap for record in done for gap in gaps(record)], percents),
        "e2e_ms": spread([record.end - record.begin for record in done], percents),
        "late_ms": None
        if level.closed
        else spread([_late(r, level) for r in done if not r.turn], sorted({*percents, 99})),
        "kv_usage": _used([reading.kv_usage for reading in run.readings]),
        "waiting": _used([reading.waiting for reading in run.readings]),
        "client_cpu_share": run.client_cpu_s / duration,
    }


def succeeded(record: Record) -> bool:
    """Whether a whole answer came."""
    return not record.error and bool(record.arrivals)


def _late(record: Record, level: Level) -> float:
    """The seconds after its moment at which a request was sent, in an open loop."""
    return 0.0 if level.closed or record.turn else record.begin - record.due


def _ended_early(record: Record) -> bool:
    """Whether the answer is known to be shorter than was asked for."""
    return not record.by_chunks and record.num_output < record.expected


def gaps(record: Record) -> list[float]:
    """The seconds between its chunks of output."""
    return [b - a for a, b in zip(record.arrivals, record.arrivals[1:], strict=False)]


def spread(seconds: Sequence[float], percents: Sequence[float]) -> dict[str, float | None]:
    """Mean, standard deviation and percentiles, in milliseconds; None of nothing."""
    ordered = sorted(seconds)
    mean = 1000 * statistics.fmean(ordered) if ordered else None
    deviation = 1000 * statistics.pstdev(ordered) if ordered else None
    found = {"mean": mean, "std": deviation}
    for percent in percents:
        value = percentile(ordered, percent)
        found[percent_name(percent)] = None if value is None else 1000 * value
    return found


def percentile(ordered: Sequence[float], percent: float) -> float | None:
    """By linear interpolation between the two nearest; None of nothing."""
    if not ordered:
        return None
    place = (len(ordered) - 1) * percent / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def percent_name(percent: float) -> str:
    """`p99`, `p99.9`."""
    return f"p{percent:g}"


def over_time(run: Run) -> dict[str, list[float]]:
    """The run by the second: output chunks, requests under way on average, the server's gauges.

    `seconds` are the ends of the intervals of the first two; the gauges have `read_at` of their
    own.
    """
    num = max(1, math.ceil(run.duration_s / SECONDS_A_POINT))
    ends = [min((i + 1) * SECONDS_A_POINT, run.duration_s) for i in range(num)]
    widths = [end - i * SECONDS_A_POINT for i, end in enumerate(ends)]
    chunks, under_way = [0.0] * num, [0.0] * num
    for record in run.records:
        for arrival in record.arrivals:
            at = min(num - 1, int((arrival - run.begin) / SECONDS_A_POINT))
            chunks[at] += 1 / widths[at]
        begin, end = record.begin - run.begin, record.end - run.begin
        for at in range(int(begin / SECONDS_A_POINT), min(num, math.ceil(end / SECONDS_A_POINT))):
            held = min(end, ends[at]) - max(begin, at * SECONDS_A_POINT)
            under_way[at] += held / widths[at]
    return {
        "seconds": ends,
        "chunks_per_s": chunks,
        "under_way": under_way,
        "read_at": [reading.at - run.begin for reading in run.readings],
        "kv_usage": [reading.kv_usage for reading in run.readings],
        "running": [reading.running for reading in run.readings],
        "waiting": [reading.waiting for reading in run.readings],
    }


def each(run: Run) -> list[dict[str, Any]]:
    """Every request, in seconds from the run's beginning, in the order of starts."""
    found = []
    for record in sorted(run.records, key=lambda record: record.begin):
        ok = succeeded(record)
        found.append(
            {
                "begin_s": record.begin - run.begin,
                "late_s": _late(record, run.level),
                "ttft_s": time_to_first(record) if ok else None,
                "tpot_s": time_per_token(record) if ok and record.num_output > 1 else None,
                "e2e_s": record.end - record.begin,
                "prompt_tokens": record.num_prompt,
                "cached_tokens": record.num_cached,
                "output_tokens": record.num_output,
                "turn": record.turn,
                "error": record.error,
            }
        )
    return found


def warnings(levels: Sequence[dict[str, Any]]) -> list[str]:
    """What makes figures doubtful."""
    found = [error for level in levels for error in level["errors"]]
    early = sum(level["ended_early"] for level in levels)
    if early:
        found.append(f"{early} answers were shorter than asked for: does the server ignore EOS?")
    if by_chunks := sum(level["counted_by_chunks"] for level in levels):
        found.append(
            f"{by_chunks} answers came without a usage: their output tokens are counted by chunks, "
            "which may hold several, and of the prompts only token ids that were sent are counted"
        )
    if any(level["client_cpu_share"] > 0.7 for level in levels):
        found.append("this client was busy more than 70 % of the time: it may hold the server back")
    late = [level["late_ms"] for level in levels if level["late_ms"] and level["completed"]]
    if any((spread["mean"] or 0) > LATE_MS for spread in late):
        found.append(
            "requests started later than the rate asks for: --max-concurrency held them back, or "
            "this client is too slow; latencies count from the start, goodput from when it was due"
        )
    return list(dict.fromkeys(found))


def _used(values: Sequence[float]) -> dict[str, float] | None:
    return {"mean": statistics.fmean(values), "max": max(values)} if values else None


def _most_at_once(records: Sequence[Record]) -> int:
    changes = sorted([(r.begin, 1) for r in records] + [(r.end, -1) for r in records])
    most = now = 0
    for _, change in changes:
        now += change
        most = max(most, now)
    return most
