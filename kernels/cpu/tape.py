"""A recorded step with memory of its own, ready to be run again and again.

    lines     embed | norm | linear | ... | a call | ... | gather | linear
    segments  [------- one array of steps ------] call [---- another ----]

Buffers share one arena: two that are never needed at the same time may lie in the same place.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import memory
from .binding import bind
from .bindings import OpFailed, Pool
from .panels import DTYPES
from .passes import simplify
from .recorder import Answer, Buffer, Line, Rows, View
from .structures import Dtype, Extent, Kind, Matrix, Sizes, Step, step

_ALIGNMENT = 4096
_SKEW = 320
"""Added from buffer to buffer, so that their first rows do not fall on the same cache sets."""


class Counts(NamedTuple):
    """How much a run computes."""

    tokens: int
    wanted: int
    sequences: int

    def of(self, rows: Rows) -> int:
        """The length of buffers of this kind."""
        if rows is Rows.STARTS:
            return self.sequences + 1
        return int(getattr(self, rows.value))


@dataclass(slots=True, eq=False)
class _Segment:
    """Native steps that run in one go; `args` keeps what they point to."""

    steps: ctypes.Array[Step]
    args: list[ctypes.Structure]


class Tape:
    """Lines that were recorded, for at most `most` rows of each kind.

    `words[n - 1]` says what mark n of the progress `cell` means.
    """

    def __init__(self, lines: list[Line], result: View, most: Counts) -> None:
        self.lines = simplify(lines, result)
        self.words = [f"{line.word}, {line.name}" for line in self.lines]
        self.cell = ctypes.c_int64(0)
        self._result = result
        self._most = most
        offsets, total = _places(self.lines, result, most)
        self._arena = memory.empty((total,), torch.uint8)
        self._offsets = offsets
        self._segments = self._cut()

    def run(self, pool: Pool, counts: Counts) -> Tensor:
        """Run it over what the given buffers hold now.

        The result's rows; they are good until the next run. Raises OpFailed.
        """
        sizes = Sizes(counts.tokens, counts.wanted, counts.sequences)
        cell = ctypes.addressof(self.cell)
        answers: dict[Answer, Any] = {}
        for segment in self._segments:
            if isinstance(segment, Line):
                self._call(segment, counts, answers)
            elif failed := pool.run(segment.steps, sizes, cell):
                broken = segment.steps[failed - 1]
                raise OpFailed(Kind(broken.kind), self.words[broken.mark - 1])
        return self._tensor(self._result, counts)

    @property
    def num_bytes(self) -> int:
        """Memory for buffers at the greatest counts."""
        return self._arena.nbytes

    def _cut(self) -> list[_Segment | Line]:
        """Native lines in arrays, calls between them."""
        segments: list[_Segment | Line] = []
        held: list[tuple[Line, int]] = []
        for mark, line in enumerate(self.lines, 1):
            if line.kind is not None:
                held.append((line, mark))
                continue
            if held:
                segments.append(self._segment(held))
            segments.append(line)
            held = []
        return [*segments, self._segment(held)] if held else segments

    def _segment(self, held: list[tuple[Line, int]]) -> _Segment:
        args, steps = [], []
        for line, mark in held:
            assert line.kind is not None
            extent = Extent.WANTED if line.rows is Rows.WANTED else Extent.TOKENS
            bound = bind(line.kind, {**line.fields, "extent": extent}, self._locate)
            args.append(bound)
            steps.append(step(line.kind, bound, mark))
        return _Segment((Step * len(steps))(*steps), args)

    def _locate(self, value: View | Tensor) -> Matrix:
        """Where a view lies, or a constant, which the line keeps."""
        if isinstance(value, Tensor):
            stride = value.stride(0) if value.dim() else 0
            return Matrix(value.data_ptr(), stride, DTYPES.get(value.dtype, Dtype.F32))
        buffer = value.buffer
        base = self._base(buffer)
        data = base.data_ptr() + value.offset * buffer.dtype.itemsize
        return Matrix(data, buffer.stride, DTYPES.get(buffer.dtype, Dtype.F32))

    def _base(self, buffer: Buffer) -> Tensor:
        """All memory of a buffer, flat."""
        count = self._most.of(buffer.rows) * buffer.stride
        if buffer.given is not None:
            return buffer.given.as_strided((count,), (1,))
        first = self._offsets[buffer]
        return self._arena[first : first + count * buffer.dtype.itemsize].view(buffer.dtype)

    def _tensor(self, view: View, counts: Counts) -> Tensor:
        buffer = view.buffer
        shape = (counts.of(buffer.rows), *view.shape)
        return self._base(buffer).as_strided(
            shape,
            (buffer.stride, *view.steps),
            self._base(buffer).storage_offset() + view.offset,
        )

    def _call(self, line: Line, counts: Counts, answers: dict[Answer, Any]) -> None:
        def real(value: Any) -> Any:
            if isinstance(value, View):
                return self._tensor(value, counts)
            return answers[value] if isinstance(value, Answer) else value

        assert line.call is not None
        args = [real(value) for value in line.args]
        options = {name: real(value) for name, value in line.options.items()}
        found = line.call(*args, **options)
        if isinstance(line.makes, Answer):
            answers[line.makes] = found
            return
        for view, value in zip(line.makes, _several(found, len(line.makes)), strict=True):
            self._tensor(view, counts).copy_(value)


def _several(found: Any, count: int) -> tuple[Tensor, ...]:
    if not count:
        return ()
    return (found,) if isinstance(found, Tensor) else tuple(found)


def _places(lines: list[Line], result: View, most: Counts) -> tuple[Mapping[Buffer, int], int]:
    """Where each buffer lies in the arena, first fit by size, and the arena's bytes."""
    spans: dict[Buffer, tuple[int, int]] = {}
    for index, line in enumerate(lines):
        for view in (*line.reads, *line.writes):
            first, _ = spans.get(view.buffer, (index, index))
            spans[view.buffer] = first, index
    if result.buffer in spans:
        spans[result.buffer] = spans[result.buffer][0], len(lines)
    sizes = {
        buffer: _rounded(most.of(buffer.rows) * buffer.stride * buffer.dtype.itemsize)
        for buffer in spans
        if buffer.given is None
    }
    placed: dict[Buffer, int] = {}
    for buffer in sorted(sizes, key=lambda b: -sizes[b]):
        taken = sorted(
            (placed[other], placed[other] + sizes[other])
            for other in placed
            if _meet(spans[other], spans[buffer])
        )
        at = 0
        for begin, end in taken:
            if begin - at >= sizes[buffer]:
                break
            at = max(at, end)
        placed[buffer] = at
    return placed, max((placed[b] + sizes[b] for b in placed), default=0)


def _rounded(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT + _SKEW


def _meet(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one[0] <= other[1] and other[0] <= one[1]
