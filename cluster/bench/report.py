"""`--report`: levels as one HTML page with plots, which opens from a file and needs no network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from typing import Any

from .figures import percentile
from .plots import Chart, Series, page
from .table import METRICS, ROWS, value_of

GAP_PERCENTS = (1, 5, 10, 25, 50, 75, 90, 95, 99, 100)
TIMES = (("ttft_ms", "Time to the first token"), ("tpot_ms", "Time a token"))


def report(found: dict[str, Any]) -> str:
    """The page of what `online.run` found, its requests and times included."""
    levels = found["levels"]
    title = f"{found['model']} at {found['url']}"
    shape = ", ".join(f"{name} {value}" for name, value in found["workload"].items() if value)
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="note">{escape(found["date"])}. {escape(shape)}.</p>',
        f'<p class="note"><code>{escape(found["command"])}</code></p>',
        *(f'<p class="note">Note: {escape(line)}</p>' for line in found["notes"]),
        _table(levels),
    ]
    if len(levels) > 1:
        body += ["<h2>By load</h2>", '<div class="charts">', *_by_load(levels), "</div>"]
    for i, level in enumerate(levels):
        body.append(f"<details{' open' if i == len(levels) - 1 else ''}>")
        body.append(f"<summary>{escape(level['title'])}</summary>")
        body += [_cards(level), '<div class="charts">', *_of_level(level), "</div></details>"]
    return page(title, body, json.dumps(found))


def _table(levels: Sequence[dict[str, Any]]) -> str:
    names = [name for name in levels[0]["ttft_ms"] if name != "std"]
    head = "".join(f"<th>{escape(level['title'])}</th>" for level in levels)
    rows = [f"<tr><th></th>{head}</tr>"]

    def add(label: str, values: Sequence[float | None], form: str) -> None:
        cells = ("-" if value is None else form.format(value) for value in values)
        rows.append(f"<tr><td>{label}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")

    for label, key, form in ROWS:
        values = [value_of(level, key) for level in levels]
        if any(value is not None for value in values):
            add(label, values, form)
    for label, key in METRICS.values():
        for name in names:
            add(f"{label}, {name}, ms", [level[key][name] for level in levels], "{:,.1f}")
    return f"<table>{''.join(rows)}</table>"


def _cards(level: dict[str, Any]) -> str:
    usage = level["kv_usage"]
    shown = [
        (f"{level['output_tokens_per_s']:,.0f}", "output tokens/s"),
        (f"{level['requests_per_s']:.2f}", "requests/s"),
        (_ms(level["ttft_ms"]["mean"]), "first token, mean"),
        (_ms(level["tpot_ms"]["mean"]), "time a token, mean"),
        (f"{level['failed']}", "failed"),
    ]
    if level["goodput_per_s"] is not None:
        limits = " ".join(f"{name}:{value:g}" for name, value in level["objectives_ms"].items())
        shown.insert(2, (f"{level['goodput_per_s']:.2f}", f"goodput, requests/s, {limits}"))
    if usage:
        shown.append((f"{usage['max']:.0%}", "KV cache in use, most"))
    cards = (f'<div class="card"><b>{value}</b><span>{name}</span></div>' for value, name in shown)
    return f'<div class="cards">{"".join(cards)}</div>'


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f} ms"


def _by_load(levels: Sequence[dict[str, Any]]) -> list[str]:
    """Charts over the rate, if rates differ, else over the requests at once."""
    rates = [level["request_rate"] for level in levels]
    open_loop = None not in rates and len(set(rates)) > 1
    axis = "requests/s asked for" if open_loop else "requests at once"

    def place(level: dict[str, Any]) -> float:
        bound = level["max_concurrency"]
        at_once = level["most_at_once"] if bound is None else bound
        return float(level["request_rate"] if open_loop else at_once)

    def line(key: str) -> list[tuple[float, float]]:
        return [(place(level), level[key]) for level in levels if level[key] is not None]

    made = [Series("output tokens/s", line("output_tokens_per_s"))]
    charts = [Chart(title="Output tokens a second", x=axis, y="tokens/s", series=made)]
    if goodput := line("goodput_per_s"):
        both = [Series("requests/s", line("requests_per_s")), Series("goodput", goodput)]
        charts.append(Chart(title="Requests and goodput", x=axis, y="requests/s", series=both))
    names = [name for name in levels[0]["ttft_ms"] if name not in ("std", "mean")]
    for key, title in TIMES:
        series = [
            Series(name, [(place(v), v[key][name]) for v in levels if v[key][name] is not None])
            for name in names
        ]
        charts.append(Chart(title=title, x=axis, y="ms", series=series))
    trade = [
        (level["tpot_ms"][names[0]], level["output_tokens_per_s"])
        for level in levels
        if level["tpot_ms"][names[0]] is not None
    ]
    charts.append(
        Chart(
            title="Throughput against the pace of a stream",
            x=f"time a token, {names[0]}, ms",
            y="output tokens/s",
            series=[Series("", sorted(trade))],
        )
    )
    return [chart.figure() for chart in charts]


def _of_level(level: dict[str, Any]) -> list[str]:
    requests, times = level["requests"], level["over_time"]
    charts = []
    for key, title in (
        ("ttft_s", "Time to the first token"),
        ("tpot_s", "Time a token"),
        ("e2e_s", "Whole answer"),
    ):
        values = sorted(1000 * r[key] for r in requests if r[key] is not None and not r["error"])
        line = [(value, (i + 1) / len(values)) for i, value in enumerate(values)]
        charts.append(Chart(title=title, x="ms", y="share of requests", series=[Series("", line)]))
    seconds = times["seconds"]
    pairs = list(zip(seconds, times["chunks_per_s"], strict=True))
    charts.append(
        Chart(
            title="Output over time",
            x="seconds",
            y="chunks/s",
            series=[Series("", pairs[:-1] or pairs)],
        )
    )
    waiting = list(zip(times["read_at"], times["waiting"], strict=True))
    queue = [Series("under way", list(zip(seconds, times["under_way"], strict=True)))]
    queue.append(Series("waiting, says the server", waiting))
    charts.append(Chart(title="Requests over time", x="seconds", y="requests", series=queue))
    if times["read_at"]:
        used = [(at, 100 * u) for at, u in zip(times["read_at"], times["kv_usage"], strict=True)]
        charts.append(Chart(title="KV cache in use", x="seconds", y="%", series=[Series("", used)]))
    starts = [(r["begin_s"], 1000 * r["ttft_s"]) for r in requests if r["ttft_s"] is not None]
    charts.append(
        Chart(
            title="First token by the time of the start",
            x="seconds",
            y="ms",
            series=[Series("", starts, dots=True)],
        )
    )
    gaps = level["gap_percentiles_ms"]
    charts.append(
        Chart(
            title="Between chunks of output",
            x="percentile",
            y="ms",
            series=[Series("", [(float(p), ms) for p, ms in gaps])],
        )
    )
    return [chart.figure() for chart in charts]


def gap_percentiles(ordered: Sequence[float]) -> list[tuple[float, float]]:
    """Milliseconds between chunks at the percentiles that are drawn."""
    found = []
    for percent in GAP_PERCENTS:
        value = percentile(ordered, percent)
        if value is not None:
            found.append((float(percent), 1000 * value))
    return found
