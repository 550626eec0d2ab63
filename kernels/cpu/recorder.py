"""A step written down while a model's ordinary forward runs once, on tensors without memory.

Rows of a step come in four counts that are known only when it runs. While it is recorded, tensors
of those counts lie on the meta device, with some number in the place of each count; an op finds
which count it is from the buffer that a tensor is a view of, never from the number.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from .structures import Epilogue, Kind

APART = 32
"""Elements between two rows of a buffer, so that rows of like size do not share cache sets."""


class NotRecordable(Exception):
    """The model does something that only ordinary torch can do."""


class Rows(Enum):
    """Which of a step's counts is the length of a buffer; `STARTS` is one more than sequences."""

    TOKENS = "tokens"
    WANTED = "wanted"
    SEQUENCES = "sequences"
    STARTS = "starts"


@dataclass(slots=True, eq=False)
class Buffer:
    """Rows of `columns` elements, `stride` apart, that steps read and write.

    `given`: memory that whoever runs the step fills before.
    """

    rows: Rows
    columns: int
    stride: int
    dtype: torch.dtype
    given: Tensor | None = None


class View(NamedTuple):
    """What of each row of a buffer: element (i, ...) is at offset + (i, ...) * steps."""

    buffer: Buffer
    offset: int
    shape: tuple[int, ...]
    steps: tuple[int, ...]


class Answer:
    """What a call gives that is no tensor, for later calls to take."""


@dataclass(slots=True, eq=False)
class Line:
    """One op of a step: a native one, or (`call`) a call that runs with tensors for its views.

    `makes`: the views that take what the call returns, or the Answer that it is.
    """

    name: str
    word: str
    kind: Kind | None = None
    rows: Rows = Rows.TOKENS
    fields: dict[str, Any] = field(default_factory=dict)
    call: Callable[..., Any] | None = None
    args: tuple[Any, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    makes: tuple[View, ...] | Answer = ()

    @property
    def reads(self) -> list[View]:
        """Views whose content this line needs."""
        if self.kind is None:
            return _views((self.args, tuple(self.options.values())))
        if self.parts:
            return [view for part in self.parts for view in part.reads]
        names = _READS[self.kind]
        if self.kind is Kind.LINEAR and self.fields.get("epilogue") == Epilogue.ADD:
            names = (*names, "out")
        return [self.fields[name] for name in names if isinstance(self.fields.get(name), View)]

    @property
    def writes(self) -> list[View]:
        """Views whose content it changes; a call may change all that it is given."""
        if self.kind is None:
            made = () if isinstance(self.makes, Answer) else self.makes
            return [*self.reads, *made]
        if self.parts:
            return [view for part in self.parts for view in part.writes]
        names = _WRITES[self.kind]
        if self.kind is Kind.NORM and self.fields.get("add") is not None:
            names = (*names, "x")
        return [self.fields[name] for name in names if isinstance(self.fields.get(name), View)]

    @property
    def acts(self) -> bool:
        """Whether it does more than fill its views."""
        acting = self.kind in (None, Kind.STORE_KV, Kind.REDUCE)
        return acting or any(part.acts for part in self.parts)

    @property
    def parts(self) -> list[Line]:
        """The lines that this one does in turn, where it does several."""
        if self.kind is not Kind.ROPE_STORE:
            return []
        return [
            Line(kind.name.lower(), self.word, kind, self.rows, self.fields[name])
            for name, kind in _PARTS.items()
            if name in self.fields
        ]


_READS: dict[Kind, tuple[str, ...]] = {
    Kind.EMBED: ("tokens",),
    Kind.LINEAR: ("x",),
    Kind.NORM: ("x", "add"),
    Kind.ADD_ROWS: ("x", "into"),
    Kind.ANGLES: ("positions",),
    Kind.ROPE: ("x", "cos", "sin"),
    Kind.STORE_KV: ("k", "v", "slots"),
    Kind.ATTEND: ("q", "block_table", "query_start", "kv_len"),
    Kind.ACTIVATE: ("x",),
    Kind.GATHER: ("x", "rows"),
    Kind.ARGMAX: ("logits",),
    Kind.REDUCE: ("x",),
}
_WRITES: dict[Kind, tuple[str, ...]] = {
    Kind.EMBED: ("out",),
    Kind.LINEAR: ("out",),
    Kind.NORM: ("out",),
    Kind.ADD_ROWS: ("into",),
    Kind.ANGLES: ("cos", "sin"),
    Kind.ROPE: ("x",),
    Kind.STORE_KV: (),
    Kind.ATTEND: ("out",),
    Kind.ACTIVATE: ("out",),
    Kind.GATHER: ("out",),
    Kind.ARGMAX: ("tokens",),
    Kind.REDUCE: ("x",),
}

_PARTS = {
    "q_norm": Kind.NORM,
    "k_norm": Kind.NORM,
    "q": Kind.ROPE,
    "k": Kind.ROPE,
    "store": Kind.STORE_KV,
}
"""The steps that a ROPE_STORE does, by the names of their fields in it."""


class Recorder:
    """The record of one step; `counts` are the numbers that stand for its counts.

    `where` says at any time which part of the model is running.
    """

    def __init__(self, counts: Mapping[Rows, int], where: Callable[[], str]) -> None:
        self.lines: list[Line] = []
        self._counts = counts
        self._where = where
        self._bases: dict[int, tuple[Buffer, Tensor]] = {}

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Inside, ops on this record's tensors are written down, and torch's own are refused."""
        _own.recorder = self
        try:
            with _ViewsAlone(self):
                yield
        finally:
            _own.recorder = None

    def given(self, memory: Tensor, rows: Rows) -> Tensor:
        """A tensor that stands for the first rows of `memory`."""
        columns = memory[0].numel()
        buffer = Buffer(rows, columns, memory.stride(0), memory.dtype, memory)
        shape = (self._counts[rows], *memory.shape[1:])
        return self._base(buffer, shape, memory.stride())

    def rows(self, like: Tensor, columns: int, dtype: torch.dtype, *, packed: bool) -> Tensor:
        """A buffer to be written, with as many rows as `like` has."""
        stride = columns if packed else -(-columns // APART) * APART + APART
        buffer = Buffer(self.view(like).buffer.rows, columns, stride, dtype)
        return self._base(buffer, (len(like), columns), (stride, 1))

    def step(self, kind: Kind, fields: Mapping[str, Any], like: Tensor) -> None:
        """Write a native op down, over the rows of `like`."""
        kept = {name: self._kept(value) for name, value in fields.items() if value is not None}
        rows = self.view(like).buffer.rows
        self.lines.append(Line(kind.name.lower(), self._where(), kind, rows, kept))

    def call(
        self,
        name: str,
        call: Callable[..., Any],
        args: tuple[Any, ...],
        options: Mapping[str, Any],
        makes: Tensor | tuple[Tensor, ...] | Answer | None,
    ) -> Any:
        """Write a call down; returns `makes`, which takes what it gives."""
        line = Line(name, self._where(), call=call)
        line.args = tree_map(self._kept, args)
        line.options = tree_map(self._kept, dict(options))
        if isinstance(makes, Tensor):
            line.makes = (self.view(makes),)
        elif isinstance(makes, tuple):
            line.makes = tuple(self.view(x) for x in makes)
        elif makes is not None:
            line.makes = makes
        self.lines.append(line)
        return makes

    def view(self, x: Tensor) -> View:
        """What of which buffer a tensor is. Raises NotRecordable where it is no whole rows."""
        buffer, base = self._bases[_storage(x)]
        offset = int(x.storage_offset())
        whole = x.dtype == base.dtype and len(x) == len(base) and x.stride(0) == buffer.stride
        if not whole or (offset >= buffer.stride and buffer.stride):
            raise NotRecordable(f"some rows of a step's {tuple(base.shape)}, as {tuple(x.shape)}")
        return View(buffer, offset, tuple(x.shape[1:]), x.stride()[1:])

    def knows(self, x: object) -> bool:
        """Whether x is a tensor of this record."""
        return isinstance(x, Tensor) and x.is_meta and _storage(x) in self._bases

    def _kept(self, value: Any) -> Any:
        return self.view(value) if self.knows(value) else value

    def _base(self, buffer: Buffer, shape: tuple[int, ...], strides: tuple[int, ...]) -> Tensor:
        base = torch.empty_strided(shape, strides, dtype=buffer.dtype, device="meta")
        self._bases[_storage(base)] = buffer, base
        return base


def current(x: Tensor) -> Recorder | None:
    """The record that the calling thread makes, if x belongs to it."""
    recorder = _own.recorder
    return recorder if recorder is not None and recorder.knows(x) else None


class _ViewsAlone(TorchDispatchMode):
    """Refuses torch's ops on a record's tensors, but for those that only look at them otherwise."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._recorder = recorder

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Otherwise torch imports its compiler, a second of CPU, to keep it from compiling this.
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not func.is_view and any(map(self._recorder.knows, tree_leaves((args, kwargs)))):
            raise NotRecordable(str(func))
        return func(*args, **kwargs)


class _Own(threading.local):
    recorder: Recorder | None = None


_own = _Own()


def _storage(x: Tensor) -> int:
    found: int = x.untyped_storage()._cdata
    return found


def _views(tree: Any) -> list[View]:
    """The views in nested tuples."""
    if isinstance(tree, View):
        return [tree]
    if isinstance(tree, (tuple, list)):
        return [view for part in tree for view in _views(part)]
    return []
