"""How a rank computes its part of a step: plain calls of the model, or a replay of what one wrote.

The runner knows `Forward` alone. On CPUs a step is recorded as a tape (`kernels/cpu/tape.py`): one
call runs it whole. On CUDA steps of decode are graphs (`cuda_graphs.py`). A model that does more
than ops and views runs op by op.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ...kernels import ops
from ...kernels.cpu.bindings import OpFailed, Pool
from ...kernels.cpu.recorder import NotRecordable, Recorder, Rows
from ...kernels.cpu.structures import Kind
from ...kernels.cpu.tape import Counts, Tape
from ..errors import WorkerLost
from ..model.batch import ModelInput
from ..model.zoo.registry import CausalLM
from .cache import Cache
from .cuda_graphs import CudaRecorder, Graphed
from .device import Device
from .forward import Forward, Limits
from .progress import IDLE, Progress

log = logging.getLogger(__name__)

_SOME = {Rows.TOKENS: 7, Rows.WANTED: 5, Rows.SEQUENCES: 2, Rows.STARTS: 3}
"""Counts of the batch that a model is recorded with; any others give the same record."""


class Plain:
    """The model's own forward, op after op."""

    def __init__(self, model: CausalLM, dtype: torch.dtype, *, last: bool = True) -> None:
        self._model = model
        self._dtype = dtype
        self._last = last

    def hidden(self, batch: ModelInput, handed: Tensor | None = None) -> Tensor:
        if handed is not None:
            handed = handed.to(self._dtype)
        found = self._model.forward(batch, handed)
        return ops.gather(found, batch.wanted) if self._last else found

    def logits(self, hidden: Tensor) -> Tensor:
        return self._model.logits(hidden)

    def greatest(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        return self._model.greatest(hidden)


class Given:
    """The memory that a tape reads its batch from."""

    def __init__(self, cache: Cache, limits: Limits, *, first: bool) -> None:
        tokens, sequences, groups = limits.tokens, limits.sequences, range(len(cache.groups))
        width = -(-limits.model_len // cache.block_size)

        def memory(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return cache.device.empty(*shape, dtype=dtype)

        self.tokens, self.positions, self.wanted = (memory(tokens) for _ in range(3))
        self.query_start = memory(sequences + 1, dtype=torch.int32)
        self.kv_len = memory(sequences, dtype=torch.int32)
        self.block_tables = [memory(sequences, width, dtype=torch.int32) for _ in groups]
        self.slots = [memory(tokens) for _ in groups]
        self.handed = None if first else memory(tokens, limits.width, dtype=torch.float32)

    def fill(self, batch: ModelInput, handed: Tensor | None) -> Counts:
        """Take a batch in."""
        pairs = [
            (self.tokens, batch.tokens),
            (self.positions, batch.positions),
            (self.wanted, batch.wanted),
            (self.query_start, batch.query_start),
            (self.kv_len, batch.kv_len),
            *zip(self.slots, batch.slots, strict=True),
        ]
        if self.handed is not None and handed is not None:
            pairs.append((self.handed, handed))
        for into, values in pairs:
            into[: len(values)] = values
        for into, table in zip(self.block_tables, batch.block_tables, strict=True):
            into[: len(table), : table.shape[1]] = table
        return Counts(len(batch.tokens), len(batch.wanted), len(batch.kv_len))

    def stand_in(self, recorder: Recorder, cache: Cache) -> tuple[ModelInput, Tensor | None]:
        """A batch without content, for the recorder."""
        given = recorder.given
        batch = ModelInput(
            tokens=given(self.tokens, Rows.TOKENS),
            positions=given(self.positions, Rows.TOKENS),
            query_start=given(self.query_start, Rows.STARTS),
            kv_len=given(self.kv_len, Rows.SEQUENCES),
            block_tables=[given(table, Rows.SEQUENCES) for table in self.block_tables],
            slots=[given(slots, Rows.TOKENS) for slots in self.slots],
            kv=cache.layers,
            group_of=cache.group_of,
            wanted=given(self.wanted, Rows.WANTED),
            max_query=0,
            max_kv=0,
        )
        handed = None if self.handed is None else given(self.handed, Rows.TOKENS)
        return batch, handed


class Taped:
    """Replays a tape of the model's forward."""

    def __init__(
        self, model: CausalLM, given: Given, tape: Tape, pool: Pool, progress: Progress
    ) -> None:
        self.tape = tape
        self._model = model
        self._given = given
        self._pool = pool
        self._progress = progress

    def hidden(self, batch: ModelInput, handed: Tensor | None = None) -> Tensor:
        counts = self._given.fill(batch, handed)
        with self._progress.replaying(self.tape.words, self.tape.cell):
            try:
                return self.tape.run(self._pool, counts)
            except OpFailed as failed:
                if failed.kind is not Kind.REDUCE:
                    raise
                where = f"a rank beside this one has ended, at {failed.where}"
                raise WorkerLost(where) from failed

    def logits(self, hidden: Tensor) -> Tensor:
        return self._model.logits(hidden)

    def greatest(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        return self._model.greatest(hidden)


class Written(NamedTuple):
    """A step that was written down, its result, and the memory that it reads."""

    recorder: Recorder
    hidden: Tensor
    given: Given


def write_down(
    model: CausalLM, cache: Cache, limits: Limits, where: Callable[[], str], *, last: bool = True
) -> Written:
    """The ops of the model's forward; `where` says which part is running. Raises NotRecordable."""
    # A stage that is not the first has no use for tokens: it begins with what it is handed.
    given = Given(cache, limits, first=limits.width == 0)
    recorder = Recorder(_SOME, where)
    batch, handed = given.stand_in(recorder, cache)
    with recorder.recording(), torch.inference_mode():
        hidden = model.forward(batch, handed)
        if last:
            hidden = ops.gather(hidden, batch.wanted)
    return Written(recorder, hidden, given)


def record(
    model: CausalLM, cache: Cache, limits: Limits, progress: Progress, *, last: bool = True
) -> tuple[Tape, Given]:
    """A tape of the model's forward, and what it reads; the rank is idle then. Raises
    NotRecordable.
    """
    progress.at("before the layers")
    try:
        made = write_down(model, cache, limits, lambda: progress.operation, last=last)
    finally:
        progress.at(IDLE)
    most = Counts(limits.tokens, limits.tokens, limits.sequences)
    return Tape(made.recorder.lines, made.recorder.view(made.hidden), most), made.given


def obstacle(model: CausalLM, device: Device, dtype: torch.dtype, *, eager: bool) -> str | None:
    """Why steps are to run op by op; None where they are recorded, if they can be."""
    if eager:
        return "enforce_eager"
    if not getattr(model, "recordable", True):
        return "transformers' code computes them"
    return device.cannot_record(dtype)


def forward_of(
    model: CausalLM,
    cache: Cache,
    limits: Limits,
    progress: Progress,
    *,
    dtype: torch.dtype,
    pool: Pool | None,
    last: bool = True,
    eager: bool = False,
) -> Forward:
    """How this rank computes: by graphs on CUDA, by a tape where it has threads for one, and op by
    op where the model cannot be recorded.

    `limits.width` is 0 on the first stage, which is handed nothing.
    """
    plain = Plain(model, dtype, last=last)
    if obstacle(model, cache.device, dtype, eager=eager):
        return plain
    if cache.device.records_graphs:
        return Graphed(plain, model, cache, limits, CudaRecorder(), dtype=dtype, last=last)
    assert pool is not None, "a device without ops of its own cannot record"
    try:
        tape, given = record(model, cache, limits, progress, last=last)
    except NotRecordable as reason:
        log.info("steps run op by op: they cannot be recorded (%s)", reason)
        return plain
    return Taped(model, given, tape, pool, progress)
