"""Counts as plain numbers: cheap to raise, and exact to merge and to add up.

A cell is one labelled series. Of a counter it holds the count; of a histogram how many values fell
into each bucket, how many above the last, and their sum. Every number only grows, so that of two
records of the same source the larger number is always the later one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from math import fsum

from .catalog import Family

Key = tuple[str, tuple[str, ...]]
Cell = list[float]
Figures = dict[Key, Cell]
"""Cells by the name of their family and the values of its labels."""


def cell(figures: Figures, family: Family, *labels: str) -> Cell:
    """The cell of these labels, of zeros where there was none."""
    key = family.name, labels
    if key not in figures:
        figures[key] = [0.0] * (len(family.buckets) + 2 if family.buckets else 1)
    return figures[key]


def observe(cell: Cell, buckets: tuple[float, ...], value: float) -> None:
    """Enter a value into a histogram's cell."""
    cell[bisect_left(buckets, value)] += 1
    cell[-1] += value


def merge(into: Figures, later: Figures) -> None:
    """Bring what is known of a source up to another record of it, in whichever order they came."""
    for key, values in later.items():
        known = into.setdefault(key, values)
        if known is not values:
            into[key] = [max(pair) for pair in zip(known, values, strict=True)]


def total(sources: Iterable[Figures]) -> Figures:
    """The sum over all sources, the same to the last bit in whichever order they come."""
    found: dict[Key, list[Cell]] = {}
    for figures in sources:
        for key, values in figures.items():
            found.setdefault(key, []).append(values)
    return {key: [*map(fsum, zip(*cells, strict=True))] for key, cells in found.items()}
