"""Rows of text in columns, as wide as they are: a terminal cuts or wraps them, a pipe does not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .escapes import clean


def print_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows under a head."""
    for line in table(head, rows):
        print(line)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of rows under a head."""
    shown = [head, *([clean(cell) for cell in row] for row in rows)]
    wide = [max(map(len, column)) for column in zip(*shown, strict=True)]
    return [
        "   ".join(f"{cell:<{w}}" for cell, w in zip(row, wide, strict=True)).rstrip()
        for row in shown
    ]
