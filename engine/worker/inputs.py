"""From a plan's rows to the tensors that a model eats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from ..model.batch import ModelInput
from ..plan import Row
from .cache import Cache
from .columns import NONE, SamplingColumns
from .device import Device
from .slots import Slots

Array = np.ndarray[Any, Any]


class PromptSpan(NamedTuple):
    """Prompt tokens to score: `num_tokens` of them from `position`, each against the row before it.

    `first` is the place in the batch of the row that scores the first.
    """

    slot: int
    position: int
    first: int
    num_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The rows of a plan as columns on the host, [B] int64 each.

    `begin` is where a row's tokens start in the batch. `sampled` lists the rows that sample.
    """

    slot: Array
    start: Array
    count: Array
    begin: Array
    sampled: Array
    prompts: tuple[PromptSpan, ...]

    @property
    def positions(self) -> Array:
        """For each sampled row the position of the token that it draws."""
        drawn: Array = (self.start + self.count)[self.sampled]
        return drawn


def lay_out(rows: Sequence[Row], columns: SamplingColumns) -> Layout:
    """Columns of a plan's rows, and what of their prompts is to be scored."""
    assert not any(row.draft for row in rows), "drafts are not verified yet"
    table = np.array([row[:3] for row in rows], dtype=np.int64)
    slot, start, count = (np.ascontiguousarray(column) for column in table.T)
    begin = count.cumsum() - count
    sampled = np.flatnonzero(np.fromiter((row.sample for row in rows), bool, len(rows)))
    prompts = []
    for row in np.flatnonzero(columns.prompt_logprobs[slot] != NONE):
        left = columns.num_prompt[slot[row]] - 1 - start[row]
        if left > 0:
            scored = min(int(left), int(count[row]))
            prompts.append(PromptSpan(int(slot[row]), int(start[row]) + 1, int(begin[row]), scored))
    return Layout(
        slot=slot, start=start, count=count, begin=begin, sampled=sampled, prompts=tuple(prompts)
    )


def model_input(layout: Layout, slots: Slots, cache: Cache, device: Device) -> ModelInput:
    """The batch of these rows. Token ids and block tables are read on the device, from `slots`.

    Every shape follows from the numbers of tokens, rows and wanted rows and the longest table.
    """
    count, block_size = layout.count, cache.block_size
    end = layout.start + count
    row = np.repeat(np.arange(len(count)), count)
    position = np.arange(int(count.sum())) - layout.begin[row] + layout.start[row]
    wanted = (layout.begin + count - 1)[layout.sampled]
    scoring = [np.arange(span.first, span.first + span.num_tokens) for span in layout.prompts]

    slot, owner, positions, page, offset, places = device.upload_all(
        layout.slot,
        layout.slot[row],
        position,
        position // block_size,
        position % block_size,
        np.concatenate([wanted, *scoring]),
    )
    width = -(-int(end.max()) // block_size)
    return ModelInput(
        tokens=slots.ids[owner, positions].long(),
        positions=positions,
        query_start=device.upload(np.append(0, count.cumsum()).astype(np.int32)),
        kv_len=device.upload(end.astype(np.int32)),
        block_tables=[table[:, :width].index_select(0, slot) for table in slots.tables],
        slots=[torch.add(offset, t[owner, page], alpha=block_size) for t in slots.tables],
        kv=cache.layers,
        group_of=cache.group_of,
        wanted=places,
        max_query=int(count.max()),
        max_kv=int(end.max()),
    )
