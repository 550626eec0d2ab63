"""Line charts as inline SVG: no script, no network, light and dark by the reader's own setting."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT = 560, 300
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 14, 44
MOST_POINTS = 400
COLOURS = 8

STYLE = """
:root { color-scheme: light dark; --paper: #fbfbfa; --ink: #1f2328; --faint: #6b7280;
  --rule: #e3e4e8; --panel: #ffffff; --c0: #2563eb; --c1: #dc2626; --c2: #059669; --c3: #d97706;
  --c4: #7c3aed; --c5: #0891b2; --c6: #be185d; --c7: #4d7c0f; }
@media (prefers-color-scheme: dark) { :root { --paper: #14161a; --ink: #e6e8eb; --faint: #9aa2ad;
  --rule: #2c3038; --panel: #1b1e24; --c0: #6ea8fe; --c1: #f87171; --c2: #34d399; --c3: #fbbf24;
  --c4: #a78bfa; --c5: #22d3ee; --c6: #f472b6; --c7: #a3e635; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1240px; padding: 32px 24px 64px; background: var(--paper);
  color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 19px; margin: 36px 0 12px; }
p.note { color: var(--faint); margin: 0 0 8px; } code { font-size: 13px; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(460px, 1fr)); gap: 16px; }
figure { margin: 0; padding: 12px 12px 6px; background: var(--panel);
  border: 1px solid var(--rule); border-radius: 8px; }
figcaption { font-weight: 600; margin-bottom: 4px; } svg { width: 100%; height: auto; }
svg text { fill: var(--faint); font: 11px system-ui, sans-serif; }
.rule { stroke: var(--rule); } .axis { stroke: var(--faint); }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; } .dot { stroke: none; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 14px; font-size: 12.5px; color: var(--faint); }
.legend i { display: inline-block; width: 14px; height: 3px; margin-right: 5px;
  vertical-align: middle; border-radius: 2px; }
table { border-collapse: collapse; background: var(--panel); font-variant-numeric: tabular-nums; }
th, td { padding: 5px 12px; border: 1px solid var(--rule); text-align: right; }
th:first-child, td:first-child { text-align: left; } th { font-weight: 600; }
.cards { display: flex; flex-wrap: wrap; gap: 12px; margin: 16px 0; }
.card { padding: 10px 16px; background: var(--panel); border: 1px solid var(--rule);
  border-radius: 8px; min-width: 132px; } .card b { display: block; font-size: 21px; }
.card span { color: var(--faint); font-size: 12.5px; }
details { margin: 18px 0; } summary { cursor: pointer; font-weight: 600; font-size: 17px; }
"""


class Series(NamedTuple):
    """A line, or `dots`, with its name in the legend."""

    name: str
    points: Sequence[tuple[float, float]]
    dots: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """What is drawn against what. Logarithmic axes leave out what is not above 0."""

    title: str
    x: str
    y: str
    series: Sequence[Series]
    log_x: bool = False
    log_y: bool = False

    def figure(self) -> str:
        """The chart with its title and legend."""
        names = [(i, s.name) for i, s in enumerate(self.series) if s.name and s.points]
        marks = (
            f'<span><i style="background:var(--c{i % COLOURS})"></i>{escape(name)}</span>'
            for i, name in names
        )
        legend = f'<div class="legend">{"".join(marks)}</div>' if len(names) > 1 else ""
        return f"<figure><figcaption>{escape(self.title)}</figcaption>{self.svg()}{legend}</figure>"

    def svg(self) -> str:
        """The drawing."""
        lines = [self._kept(series) for series in self.series]
        points = [point for line in lines for point in line]
        across = _Axis([x for x, _ in points], self.log_x, LEFT, WIDTH - RIGHT)
        up = _Axis([y for _, y in points], self.log_y, HEIGHT - BOTTOM, TOP)
        parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">', *_grid(across, up)]
        parts.append(
            f'<text x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 8}" text-anchor="middle">'
            f"{escape(self.x)}</text>"
            f'<text transform="translate(14 {(TOP + HEIGHT - BOTTOM) / 2:.0f}) rotate(-90)" '
            f'text-anchor="middle">{escape(self.y)}</text>'
        )
        for i, (series, line) in enumerate(zip(self.series, lines, strict=True)):
            parts += _drawn(series, line, f"var(--c{i % COLOURS})", across.at, up.at)
        return "".join([*parts, "</svg>"])

    def _kept(self, series: Series) -> list[tuple[float, float]]:
        kept = [
            (x, y)
            for x, y in series.points
            if (x > 0 or not self.log_x) and (y > 0 or not self.log_y)
        ]
        step = -(-len(kept) // MOST_POINTS)
        return kept if step < 2 else [*kept[::step], kept[-1]]


class _Axis:
    """From values to places between two ends, with round ticks; 0 is on a linear one."""

    def __init__(self, values: Sequence[float], log: bool, begin: float, end: float) -> None:
        self.log, self._begin, self._end = log, begin, end
        low, high = min(values, default=0.0), max(values, default=1.0)
        if log and values:
            self.ticks = _powers(low, high)
        else:
            self.log = False
            self.ticks = _round_ticks(min(low, 0.0), max(high, 0.0))
        self._low, self._high = self._scaled(self.ticks[0]), self._scaled(self.ticks[-1])

    def at(self, value: float) -> float:
        share = (self._scaled(value) - self._low) / ((self._high - self._low) or 1.0)
        return self._begin + share * (self._end - self._begin)

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.log else value


def _round_ticks(low: float, high: float) -> list[float]:
    span = (high - low) or abs(high) or 1.0
    raw = span / 5
    unit = 10 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= raw * 0.999)
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil(high / step - 1e-9), first + 1)
    return [i * step for i in range(first, last + 1)]


def _powers(low: float, high: float) -> list[float]:
    """1, 2, 5 and their tens where few are spanned, tens alone where many are."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    factors = (1, 2, 5) if last - first <= 3 else (1,)
    ticks = [factor * 10.0**power for power in range(first, last + 1) for factor in factors]
    below = max((t for t in ticks if t <= low * 1.0001), default=ticks[0])
    above = min((t for t in ticks if t >= high * 0.9999), default=ticks[-1])
    kept = [tick for tick in ticks if below <= tick <= above]
    return kept if len(kept) > 1 else [below, below * 10]


def _grid(across: _Axis, up: _Axis) -> list[str]:
    parts = []
    for tick in up.ticks:
        y = up.at(tick)
        parts.append(
            f'<line class="rule" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_short(tick)}</text>'
        )
    for tick in across.ticks:
        x = across.at(tick)
        parts.append(
            f'<line class="rule" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
            f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{_short(tick)}'
            "</text>"
        )
    base = HEIGHT - BOTTOM
    ends = f'x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}"'
    return [*parts, f'<line class="axis" {ends}/>']


def _drawn(
    series: Series,
    line: Sequence[tuple[float, float]],
    colour: str,
    across: Callable[[float], float],
    up: Callable[[float], float],
) -> list[str]:
    """A line with dots on it, which tell their values when pointed at; many points have none."""
    places = [(across(x), up(y)) for x, y in line]
    parts = []
    if not series.dots and places:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline class="line" stroke="{colour}" points="{path}"/>')
    if series.dots or len(places) <= 60:
        radius = 2.2 if series.dots else 3
        for (x, y), (value_x, value_y) in zip(places, line, strict=True):
            told = escape(f"{series.name}: {value_x:.4g}, {value_y:.4g}".lstrip(": "))
            parts.append(
                f'<circle class="dot" fill="{colour}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}">'
                f"<title>{told}</title></circle>"
            )
    return parts


def _short(value: float) -> str:
    for bound, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= bound:
            return f"{value / (1e3 if unit == 'k' else bound):.4g}{unit}"
    return f"{value:.4g}"


def page(title: str, body: Sequence[str], data: str) -> str:
    """A page that needs nothing but itself; `data`, JSON, is in it for who wants the numbers."""
    # A browser reads no JSON here: `</script` would end it, and `<!--<script` hide its end.
    held = data.replace("<", "\\u003c")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>"
        f"{''.join(body)}"
        f'<script type="application/json" id="data">{held}</script></body></html>\n'
    )
