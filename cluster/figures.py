"""The figures of a benchmark: what users feel, what the machine yields, as a table and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from .traffic import Record, Run
from .workload import Workload

PERCENTS = (50, 90, 99)


def summary(run: Run, workload: Workload) -> dict[str, Any]:
    """One level in figures; times in milliseconds.

    TTFT: to the first output. TPOT: a request's mean time an output token after that. ITL: between
    chunks of output. E2E: to the end. Failed requests count for nothing but `failed`.
    """
    done = [record for record in run.records if not record.error and record.arrivals]
    output = sum(record.num_output for record in done)
    prompt = sum(record.num_prompt for record in done)
    errors = sorted({record.error for record in run.records if record.error})
    return {
        "max_concurrency": run.level.concurrency,
        "request_rate": run.level.rate if math.isfinite(run.level.rate) else None,
        "completed": len(done),
        "failed": len(run.records) - len(done),
        "errors": errors,
        "ended_early": sum(
            workload.ignore_eos and record.num_output < workload.output_len for record in done
        ),
        "duration_s": run.duration_s,
        "requests_per_s": len(done) / run.duration_s,
        "output_tokens_per_s": output / run.duration_s,
        "total_tokens_per_s": (prompt + output) / run.duration_s,
        "mean_prompt_tokens": prompt / max(len(done), 1),
        "mean_output_tokens": output / max(len(done), 1),
        "ttft_ms": _spread([record.arrivals[0] - record.begin for record in done]),
        "tpot_ms": _spread([_tpot(record) for record in done if record.num_output > 1]),
        "itl_ms": _spread([gap for record in done for gap in _gaps(record)]),
        "e2e_ms": _spread([record.end - record.begin for record in done]),
        "client_cpu_share": run.client_cpu_s / run.duration_s,
    }


def _tpot(record: Record) -> float:
    return (record.arrivals[-1] - record.arrivals[0]) / (record.num_output - 1)


def _gaps(record: Record) -> list[float]:
    return [b - a for a, b in zip(record.arrivals, record.arrivals[1:], strict=False)]


def _spread(seconds: list[float]) -> dict[str, float | None]:
    ordered = sorted(seconds)
    return {f"p{percent}": _percentile(ordered, percent) for percent in PERCENTS}


def _percentile(ordered: Sequence[float], percent: float) -> float | None:
    """By linear interpolation, in milliseconds; None of nothing."""
    if not ordered:
        return None
    place = (len(ordered) - 1) * percent / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return 1000 * (ordered[low] + (ordered[high] - ordered[low]) * (place - low))


ROWS = (
    ("completed", "completed", "{:,.0f}"),
    ("failed", "failed", "{:,.0f}"),
    ("requests/s", "requests_per_s", "{:.2f}"),
    ("output tokens/s", "output_tokens_per_s", "{:,.1f}"),
    ("all tokens/s", "total_tokens_per_s", "{:,.1f}"),
    ("prompt tokens, mean", "mean_prompt_tokens", "{:,.1f}"),
    ("output tokens, mean", "mean_output_tokens", "{:,.1f}"),
)
TIMES = (
    ("first token", "ttft_ms"),
    ("time a token", "tpot_ms"),
    ("between chunks", "itl_ms"),
    ("whole answer", "e2e_ms"),
)


def table(levels: Sequence[dict[str, Any]]) -> Table:
    """A column a level."""
    drawn = Table(title=None, header_style="bold")
    drawn.add_column("")
    for level in levels:
        rate = level["request_rate"]
        head = f"{rate:g} requests/s" if rate else f"{level['max_concurrency']} at once"
        drawn.add_column(head, justify="right")
    for label, key, form in ROWS:
        drawn.add_row(label, *(form.format(level[key]) for level in levels))
    for label, key in TIMES:
        for percent in PERCENTS:
            values = [level[key][f"p{percent}"] for level in levels]
            shown = ("-" if value is None else f"{value:,.1f}" for value in values)
            drawn.add_row(f"{label}, p{percent}, ms", *shown, end_section=percent == PERCENTS[-1])
    drawn.add_row("this client's CPU", *(f"{level['client_cpu_share']:.0%}" for level in levels))
    return drawn


def warnings(levels: Sequence[dict[str, Any]]) -> list[str]:
    """What makes figures doubtful."""
    found = [error for level in levels for error in level["errors"]]
    early = sum(level["ended_early"] for level in levels)
    if early:
        found.append(f"{early} answers were shorter than asked for: does the server ignore EOS?")
    if any(level["client_cpu_share"] > 0.7 for level in levels):
        found.append("this client was busy more than 70 % of the time: it may hold the server back")
    return list(dict.fromkeys(found))


def write_json(
    path: Path, url: str, workload: Workload, levels: Sequence[dict[str, Any]], date: str
) -> None:
    """All figures with the shape they belong to."""
    found = {"date": date, "url": url, "workload": asdict(workload), "levels": levels}
    path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
