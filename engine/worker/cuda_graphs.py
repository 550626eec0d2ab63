"""Steps of decode as CUDA graphs: recorded when one of their size is met, then replayed.

A graph holds the model's launches for so many rows and for texts up to some length, over memory of
its own; a batch is copied there, filled up with rows that read and write block 0. The first batch
of a size runs op by op, so that start-up and the first token wait for no graph; the second records
it. Where that fails, batches are filled up all the same and run op by op: ranks that add up their
results may have recorded theirs, and all must add up as many rows. Longer queries run op by op.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ...kernels import ops
from ..model.batch import ModelInput
from ..model.zoo.registry import CausalLM
from .cache import Cache
from .forward import Forward, Limits

LEAST_LENGTH = 1024

log = logging.getLogger(__name__)


class Recorded(NamedTuple):
    """Where a replay puts its result, and what replays."""

    result: Tensor
    replay: Callable[[], None]


class Recorder(Protocol):
    """Records what a function launches."""

    def record(self, compute: Callable[[], Tensor]) -> Recorded:
        """Record `compute`, whose memory stays in place. Nothing is computed yet."""
        ...


class CudaRecorder:
    """torch.cuda's graphs, which share their memory: one is replayed at a time.

    `torch.cuda.graph` waits for the device and empties its caches first. That stays: while it
    records, torch's allocator gives nothing back that it keeps for later, and next to a cache that
    takes most of the memory the recording would find none.
    """

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, compute: Callable[[], Tensor]) -> Recorded:
        graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                result = compute()
        except RuntimeError:
            self._leave_pool()
            raise
        finally:  # where a recording fails, torch leaves its own stream in place
            torch.cuda.set_stream(stream)
        return Recorded(result, graph.replay)

    def _leave_pool(self) -> None:
        """Have the allocator know that nothing is recorded any more. torch does not tell it where
        the recording turned out invalid; and while one is under way, it gives no memory back.
        """
        device = torch.cuda.current_device()
        with suppress(RuntimeError):  # it was told: it knows of no recording
            torch._C._cuda_endAllocateToPool(device, self._pool)
            torch._C._cuda_releasePool(device, self._pool)


class Size(NamedTuple):
    """What a graph is for: up to so many rows, of texts up to so many keys."""

    rows: int
    keys: int


class Given:
    """The memory that graphs read their batch from."""

    def __init__(self, cache: Cache, limits: Limits, dtype: torch.dtype) -> None:
        rows, device = limits.sequences, cache.device
        rows = 1 << (rows - 1).bit_length()
        width = -(-limits.model_len // cache.block_size)
        groups = range(len(cache.groups))

        def memory(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return device.empty(*shape, dtype=dtype).zero_()

        self.tokens, self.positions = memory(rows), memory(rows)
        self.wanted = torch.arange(rows, device=device.place)
        self.query_start = torch.arange(rows + 1, dtype=torch.int32, device=device.place)
        self.kv_len = memory(rows, dtype=torch.int32)
        self.block_tables = [memory(rows, width, dtype=torch.int32) for _ in groups]
        self.slots = [memory(rows) for _ in groups]
        self.handed = memory(rows, limits.width, dtype=dtype) if limits.width else None
        self._cache = cache

    def fill(self, batch: ModelInput, handed: Tensor | None, rows: int) -> None:
        """Take a batch in, and make the rows behind it sequences of one token in block 0."""
        count = len(batch.tokens)
        vectors = [self.tokens, self.positions, *self.slots]
        given = [batch.tokens, batch.positions, *batch.slots]
        torch._foreach_copy_([into[:count] for into in vectors], given)
        self.kv_len[:count] = batch.kv_len
        for into, table in zip(self.block_tables, batch.block_tables, strict=True):
            into[:count, : table.shape[1]] = table
        if count < rows:
            torch._foreach_zero_([into[count:rows] for into in vectors])
            self.kv_len[count:rows] = 1
            for into in self.block_tables:
                into[count:rows, 0] = 0
        if self.handed is not None and handed is not None:
            self.handed[:count] = handed

    def batch(self, size: Size) -> ModelInput:
        """The batch of a graph, whose content is yet to come."""
        rows, keys = size
        return ModelInput(
            tokens=self.tokens[:rows],
            positions=self.positions[:rows],
            query_start=self.query_start[: rows + 1],
            kv_len=self.kv_len[:rows],
            block_tables=[table[:rows] for table in self.block_tables],
            slots=[slots[:rows] for slots in self.slots],
            kv=self._cache.layers,
            group_of=self._cache.group_of,
            wanted=self.wanted[:rows],
            max_query=1,
            max_kv=keys,
        )


class Graphed:
    """Replays graphs for steps of decode; leaves other steps to `plain`.

    The results of a replay lie where the next one puts its own.
    """

    def __init__(
        self,
        plain: Forward,
        model: CausalLM,
        cache: Cache,
        limits: Limits,
        recorder: Recorder,
        *,
        dtype: torch.dtype,
        last: bool = True,
    ) -> None:
        self._plain = plain
        self._model = model
        self._limits = limits
        self._recorder = recorder
        self._records = True
        self._last = last
        self._given = Given(cache, limits, dtype)
        self._graphs: dict[Size, Recorded | None] = {}

    def hidden(self, batch: ModelInput, handed: Tensor | None = None) -> Tensor:
        if batch.max_query > 1:
            return self._plain.hidden(batch, handed)
        size = self._size(batch)
        self._given.fill(batch, handed, size.rows)
        result = self._computed(size)
        return ops.gather(result, batch.wanted) if self._last else result[: len(batch.tokens)]

    def logits(self, hidden: Tensor) -> Tensor:
        return self._plain.logits(hidden)

    def greatest(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        return self._plain.greatest(hidden)

    def _size(self, batch: ModelInput) -> Size:
        """The least size that holds a batch: powers of 2 in rows, of 4 in keys."""
        rows = 1 << (len(batch.tokens) - 1).bit_length()
        keys = LEAST_LENGTH
        while keys < batch.max_kv:
            keys *= 4
        return Size(rows, min(keys, self._limits.model_len))

    def _computed(self, size: Size) -> Tensor:
        """The result for what was filled in.

        The second time a size is met its kernels are loaded, and it is recorded.
        """
        if size not in self._graphs:
            self._graphs[size] = None
        elif self._graphs[size] is None and self._records:
            self._graphs[size] = self._recorded(size)
        graph = self._graphs[size]
        if graph is None:
            return self._compute(size)
        graph.replay()
        return graph.result

    def _recorded(self, size: Size) -> Recorded | None:
        """The graph of a size; None where it turns out that none can be recorded."""
        try:
            graph = self._recorder.record(lambda: self._compute(size))
        except RuntimeError as error:
            log.warning("steps not yet recorded run op by op: they cannot be (%s)", error)
            self._records = False
            return None
        log.debug("recorded a step of %d rows, of texts up to %d", *size)
        return graph

    def _compute(self, size: Size) -> Tensor:
        handed = self._given.handed
        batch = self._given.batch(size)
        return self._model.forward(batch, None if handed is None else handed[: size.rows])
