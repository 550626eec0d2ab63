"""Draws what `scaling.py` found: for each policy the replicas over time, and the first tokens."""

from __future__ import annotations

import math
from collections.abc import Iterator
from html import escape
from typing import Any

WIDE, HIGH, LEFT, TOP, GAP = 860, 150, 60, 60, 70
MOST_REPLICAS = 4
LEAST_MS, MOST_MS = 5.0, 20_000.0
BUCKET_S = 2.5
LINES = 16


def drawn(found: dict[str, Any]) -> str:
    """The SVG of all runs, one below the other, on one axis of time."""
    total_s = sum(seconds for _, _, seconds in found["trace"])
    runs = found["runs"]
    told = [line for run in runs.values() for line in run["decisions"]]
    height = TOP + len(runs) * (HIGH + GAP) + LINES * (len(told) + 2)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDE + 2 * LEFT}" height="{height}" '
        'font-family="sans-serif" font-size="11">',
        '<rect width="100%" height="100%" fill="white"/>',
        _text(
            LEFT, 20, "Replicas ready (line) and asked for (dashes); first token, p99 (bars)", 14
        ),
        _text(LEFT, 38, escape(found["command"])),
    ]
    for index, (name, run) in enumerate(runs.items()):
        top = TOP + index * (HIGH + GAP)
        parts += _panel(top, name, run, found["trace"], total_s)
    bottom = TOP + len(runs) * (HIGH + GAP)
    for index, (at, line) in enumerate(told):
        parts.append(_text(LEFT, bottom + LINES * index, escape(f"{at:6.1f} s  {line}")))
    return "\n".join([*parts, "</svg>", ""])


def _panel(
    top: float, name: str, run: dict[str, Any], trace: list[Any], total_s: float
) -> Iterator[str]:
    yield _text(LEFT, top + 14, escape(_title(name, run)), 12)
    base, begun = top + 20 + HIGH, 0.0
    for phase, rate, seconds in trace:
        x = LEFT + WIDE * begun / total_s
        yield f'<line x1="{x:.1f}" y1="{top + 20}" x2="{x:.1f}" y2="{base}" stroke="#bbb"/>'
        yield _text(x + 3, base + 14, f"{phase}: {rate:g} requests/s")
        begun += seconds
    width = WIDE * BUCKET_S / total_s
    for at, ms in run["ttft_p99_ms"]:
        x, tall = LEFT + WIDE * at / total_s, _tall(ms)
        yield (
            f'<rect x="{x:.1f}" y="{base - tall:.1f}" width="{width - 1:.1f}" '
            f'height="{tall:.1f}" fill="#ccd"/>'
        )
    for column, style in ((2, 'stroke="#c60" stroke-dasharray="4 3"'), (1, 'stroke="#06c"')):
        points = []
        for row in run["replicas"]:
            x, y = LEFT + WIDE * min(row[0], total_s) / total_s, _level(base, row[column])
            points += [f"{x:.1f},{points[-1].partition(',')[2] if points else f'{y:.1f}'}"]
            points += [f"{x:.1f},{y:.1f}"]
        points += [f"{LEFT + WIDE},{points[-1].partition(',')[2]}"]
        yield f'<polyline fill="none" stroke-width="2" {style} points="{" ".join(points)}"/>'
    for replicas in range(MOST_REPLICAS + 1):
        yield _text(LEFT - 16, _level(base, replicas) + 4, str(replicas))
    for ms in (10, 100, 1000, 10_000):
        yield _text(LEFT + WIDE + 6, base - _tall(ms) + 4, f"{ms:,} ms")


def _title(name: str, run: dict[str, Any]) -> str:
    phases = run["phases"].values()
    lost, asked = (sum(p[key] for p in phases) for key in ("lost", "requests"))
    return f"{name}: {run['replica_seconds']} replica seconds, {lost} of {asked} requests lost"


def _level(base: float, replicas: int) -> float:
    return base - HIGH * replicas / (MOST_REPLICAS + 0.5)


def _tall(ms: float) -> float:
    share = math.log(max(ms, LEAST_MS) / LEAST_MS) / math.log(MOST_MS / LEAST_MS)
    return HIGH * min(share, 1.0)


def _text(x: float, y: float, text: str, size: int = 11) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" xml:space="preserve">{text}</text>'
