"""What a recorded step becomes before it is run: fewer lines that compute the same.

Each pass takes a list of lines and gives another. For a row of the result the order of additions
stays one that depends on that row alone.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from .heads import fuse_heads
from .recorder import Buffer, Line, Rows, View
from .structures import Epilogue, Kind

Lines = list[Line]


def simplify(lines: Lines, result: View) -> Lines:
    """All passes over a step whose result is `result`."""
    lines = gather_early(lines, result)
    widen_sums(lines)
    lines = fuse_activations(lines, result)
    lines = fuse_sums(lines, result)
    lines = fuse_heads(lines)
    return drop_unread(lines, result)


def widen_sums(lines: Lines) -> None:
    """Keep in float32 what is added up: the residual stream, and what goes into it."""
    for line in lines:
        if line.kind is Kind.NORM and "add" in line.fields:
            _widen(line.fields["add"].buffer, line.fields["x"].buffer)
        elif line.kind is Kind.ADD_ROWS:
            _widen(line.fields["x"].buffer, line.fields["into"].buffer)
        elif line.kind is Kind.REDUCE:
            _widen(line.fields["x"].buffer)


def _widen(*buffers: Buffer) -> None:
    for buffer in buffers:
        if buffer.given is None:
            buffer.dtype = torch.float32


_ACTIVATIONS = (Epilogue.GELU_ERF, Epilogue.GELU_TANH, Epilogue.RELU)


def fuse_activations(lines: Lines, result: View) -> Lines:
    """A product and the activation of it become one line."""
    fused: Lines = []
    for line in lines:
        maker = fused[-1] if fused else None
        if (
            line.kind is Kind.ACTIVATE
            and line.fields["kind"] in _ACTIVATIONS
            and maker is not None
            and _stores(maker, line.fields["x"])
            and _used_once(line.fields["x"].buffer, lines, result)
        ):
            fields = {**maker.fields, "out": line.fields["out"], "epilogue": line.fields["kind"]}
            fused[-1] = replace(maker, fields=fields)
        else:
            fused.append(line)
    return fused


def fuse_sums(lines: Lines, result: View) -> Lines:
    """A product that is only added to something is added there by the product itself.

    Several products may have been added up before: then all of them are.
    """
    lines = list(lines)
    for index in range(len(lines)):
        into, part = _sum(lines[index])
        if into is None or part is None or part.buffer is into.buffer:
            continue
        makers = [n for n, line in enumerate(lines[:index]) if _touches(line, part.buffer)]
        readers = [n for n, line in enumerate(lines[index + 1 :]) if _touches(line, part.buffer)]
        if not makers or readers or part.buffer is result.buffer:
            continue
        products = all(_adds_up(lines[n], part, first=n == makers[0]) for n in makers)
        between = lines[makers[0] : index]
        if not products or any(_touches(line, into.buffer) for line in between):
            continue
        for n in makers:
            fields = {**lines[n].fields, "out": into, "epilogue": Epilogue.ADD}
            lines[n] = replace(lines[n], fields=fields)
        lines[index] = _without_sum(lines[index])
    return [line for line in lines if line.kind is not None or line.call is not None]


def _sum(line: Line) -> tuple[View | None, View | None]:
    """What a line adds to, and what it adds."""
    if line.kind is Kind.ADD_ROWS:
        return line.fields["into"], line.fields["x"]
    if line.kind is Kind.NORM and "add" in line.fields:
        return line.fields["x"], line.fields["add"]
    return None, None


def _without_sum(line: Line) -> Line:
    if line.kind is Kind.NORM:
        return replace(line, fields={k: v for k, v in line.fields.items() if k != "add"})
    return Line(line.name, line.word)


def _adds_up(line: Line, part: View, *, first: bool) -> bool:
    """Whether a line is a product that begins, or goes on, to fill `part`."""
    if line.kind is not Kind.LINEAR or line.fields["out"] != part:
        return False
    plain = Epilogue.STORE if first else Epilogue.ADD
    return bool(line.fields.get("epilogue", Epilogue.STORE) == plain)


def gather_early(lines: Lines, result: View) -> Lines:
    """What only the wanted rows need is computed for the wanted rows alone.

    A gather at the end moves up past all ops that treat each row by itself: in the last layer to
    just behind its attention.
    """
    if not lines or lines[-1].kind is not Kind.GATHER or lines[-1].fields["out"] != result:
        return lines
    *before, gather = lines
    start = len(before)
    while start and before[start - 1].kind in _BY_ROW:
        start -= 1
    source = gather.fields["x"].buffer
    if start == len(before) or not any(_touches(line, source) for line in before[start:]):
        return lines
    few = {source: result.buffer}
    filled: set[Buffer] = set()
    gathers: Lines = []
    moved: Lines = []
    for line in before[start:]:
        for view in line.reads:
            if view.buffer not in filled:
                gathers.append(_gathered(view.buffer, few, gather))
                filled.add(view.buffer)
        for view in line.writes:
            few.setdefault(view.buffer, _few(view.buffer))
            filled.add(view.buffer)
        fields = {
            name: value._replace(buffer=few[value.buffer]) if isinstance(value, View) else value
            for name, value in line.fields.items()
        }
        moved.append(replace(line, fields=fields, rows=Rows.WANTED))
    return [*before[:start], *gathers, *moved]


_BY_ROW = (Kind.LINEAR, Kind.NORM, Kind.ADD_ROWS, Kind.ACTIVATE, Kind.REDUCE)


def _few(buffer: Buffer) -> Buffer:
    """A buffer like this one, for the wanted rows."""
    return Buffer(Rows.WANTED, buffer.columns, buffer.stride, buffer.dtype)


def _gathered(buffer: Buffer, few: dict[Buffer, Buffer], gather: Line) -> Line:
    """The line that brings a buffer's wanted rows over."""
    few.setdefault(buffer, _few(buffer))
    whole = View(buffer, 0, (buffer.columns,), (1,))
    fields = {"x": whole, "out": whole._replace(buffer=few[buffer]), "columns": buffer.columns}
    return replace(gather, fields={**gather.fields, **fields})


def _used_once(buffer: Buffer, lines: Lines, result: View) -> bool:
    """Whether a buffer is written by one line and read by one more."""
    return buffer is not result.buffer and sum(_touches(line, buffer) for line in lines) == 2


def _stores(line: Line, view: View) -> bool:
    plain = line.fields.get("epilogue", Epilogue.STORE) == Epilogue.STORE
    return line.kind is Kind.LINEAR and plain and bool(line.fields["out"] == view)


def _touches(line: Line, buffer: Buffer) -> bool:
    return any(view.buffer is buffer for view in (*line.reads, *line.writes))


def drop_unread(lines: Lines, result: View) -> Lines:
    """Leave out what fills only what nobody reads."""
    needed, kept = {id(result.buffer)}, []
    for line in reversed(lines):
        if line.acts or any(id(view.buffer) in needed for view in line.writes):
            kept.append(line)
            needed.update(id(view.buffer) for view in line.reads)
    return kept[::-1]
