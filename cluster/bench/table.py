"""Levels as a table in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from .figures import percent_name

ROWS = (
    ("completed", "completed", "{:,.0f}"),
    ("failed", "failed", "{:,.0f}"),
    ("requests/s", "requests_per_s", "{:.2f}"),
    ("goodput, requests/s", "goodput_per_s", "{:.2f}"),
    ("output tokens/s", "output_tokens_per_s", "{:,.1f}"),
    ("all tokens/s", "total_tokens_per_s", "{:,.1f}"),
    ("prompt tokens, mean", "mean_prompt_tokens", "{:,.1f}"),
    ("of all, found cached", "cached_share", "{:.0%}"),
    ("output tokens, mean", "mean_output_tokens", "{:,.1f}"),
    ("started late, mean, ms", "late_ms mean", "{:,.1f}"),
    ("started late, p99, ms", "late_ms p99", "{:,.1f}"),
    ("most requests at once", "most_at_once", "{:,.0f}"),
)
METRICS: Mapping[str, tuple[str, str]] = {
    "ttft": ("first token", "ttft_ms"),
    "tpot": ("time a token", "tpot_ms"),
    "itl": ("between chunks", "itl_ms"),
    "e2el": ("whole answer", "e2e_ms"),
}
"""What vLLM calls it, and how it is shown and kept here."""


def table(
    levels: Sequence[dict[str, Any]],
    metrics: Sequence[str] = tuple(METRICS),
    percents: Sequence[float] = (50, 90, 99),
) -> Table:
    """A column a level."""
    drawn = Table(title=None, header_style="bold")
    drawn.add_column("")
    for level in levels:
        drawn.add_column(level["title"], justify="right")
    for label, key, form in ROWS:
        values = [value_of(level, key) for level in levels]
        if any(value is not None for value in values):
            last = key == ROWS[-1][1]
            drawn.add_row(label, *(_shown(value, form) for value in values), end_section=last)
    for label, key in (METRICS[metric] for metric in metrics):
        for name in ("mean", *map(percent_name, percents)):
            values = [level[key][name] for level in levels]
            last = name == percent_name(percents[-1])
            cells = (_shown(value, "{:,.1f}") for value in values)
            drawn.add_row(f"{label}, {name}, ms", *cells, end_section=last)
    for label, key, part in (
        ("KV cache in use, mean", "kv_usage", "mean"),
        ("KV cache in use, most", "kv_usage", "max"),
    ):
        if any(level[key] for level in levels):
            cells = (_shown((level[key] or {}).get(part), "{:.1%}") for level in levels)
            drawn.add_row(label, *cells)
    drawn.add_row("this client's CPU", *(f"{level['client_cpu_share']:.0%}" for level in levels))
    return drawn


def value_of(level: Mapping[str, Any], key: str) -> float | None:
    """What a level has for a row of `ROWS`; None: nothing to be shown."""
    if key == "cached_share":
        cached, prompt = level["cached_tokens"], level["prompt_tokens"]
        return cached / prompt if cached else None
    name, _, part = key.partition(" ")
    value: float | None = (level[name] or {}).get(part) if part else level[name]
    return value


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
