"""Device rows by slot: the token ids and block tables of the sequences under way."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..plan import Row, Start
from .device import Device

_NARROWEST = 256


class Slots:
    """What a plan leaves unsaid because the device knows it.

    ids        [slots, W] int32, tokens by position: prompt, emitted, and what was just sampled
    tables[g]  [slots, M] int32, block ids by position in the sequence
    num_blocks [groups, slots] on the host, how many entries of each table count

    Both widths grow by doubling to the longest sequence so far: 256 slots at a context of 128k cost
    nothing until one gets there.
    """

    def __init__(self, num_slots: int, num_groups: int, device: Device) -> None:
        self._device = device
        self.ids = device.empty(num_slots, _NARROWEST, dtype=torch.int32)
        self.tables = [
            device.empty(num_slots, _NARROWEST // 16, dtype=torch.int32) for _ in range(num_groups)
        ]
        self.num_blocks = np.zeros((num_groups, num_slots), dtype=np.int64)

    def start(self, starts: Sequence[Start]) -> None:
        """Fill the rows of sequences that enter."""
        if not starts:
            return
        self._write_ids([(start.slot, 0, start.tokens) for start in starts])
        for group in range(len(self.tables)):
            self.num_blocks[group, [start.slot for start in starts]] = 0
            self._append(group, [(start.slot, start.blocks[group]) for start in starts])

    def grow(self, rows: Sequence[Row]) -> None:
        """Append the blocks and write the ids that these rows bring."""
        for group in range(len(self.tables)):
            grown = [(row.slot, row.grown[group]) for row in rows if row.grown and row.grown[group]]
            if grown:
                self._append(group, grown)
        brought = [(row.slot, row.start, row.tokens) for row in rows if row.tokens]
        if brought:
            self._write_ids(brought)

    def write_sampled(self, slots: Tensor, positions: Tensor, tokens: Tensor, most: int) -> None:
        """Put sampled tokens where the next plan looks for them; `most` is the last position."""
        self._widen_ids(most + 1)
        self.ids[slots, positions] = tokens.to(torch.int32)

    def emitted(self, slot: int, begin: int, end: int) -> np.ndarray[Any, Any]:
        """Token ids [n] int32 at positions begin .. end, on the host: waits for the device."""
        found: np.ndarray[Any, Any] = self.ids[slot, begin:end].cpu().numpy()
        return found

    def _write_ids(self, pieces: Sequence[tuple[int, int, Sequence[int]]]) -> None:
        self._widen_ids(max(begin + len(tokens) for _, begin, tokens in pieces))
        slot, place = _places(pieces)
        values = np.fromiter(chain.from_iterable(tokens for _, _, tokens in pieces), np.int32)
        upload = self._device.upload
        self.ids[upload(slot), upload(place)] = upload(values)

    def _append(self, group: int, grown: Sequence[tuple[int, Sequence[int]]]) -> None:
        counts = self.num_blocks[group]
        pieces = [(slot, int(counts[slot]), blocks) for slot, blocks in grown]
        most = max(begin + len(blocks) for _, begin, blocks in pieces)
        self.tables[group] = self._wider(self.tables[group], most)
        slot, place = _places(pieces)
        values = np.fromiter(chain.from_iterable(blocks for _, _, blocks in pieces), np.int32)
        upload = self._device.upload
        self.tables[group][upload(slot), upload(place)] = upload(values)
        for at, begin, blocks in pieces:
            counts[at] = begin + len(blocks)

    def _widen_ids(self, width: int) -> None:
        self.ids = self._wider(self.ids, width)

    def _wider(self, table: Tensor, width: int) -> Tensor:
        if width <= table.shape[1]:
            return table
        wider = self._device.empty(len(table), 1 << (width - 1).bit_length(), dtype=table.dtype)
        wider[:, : table.shape[1]] = table
        return wider


def _places(
    pieces: Iterable[tuple[int, int, Sequence[int]]],
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Row and column of every entry of the runs (row, first column, values)."""
    runs = np.array([(slot, begin, len(values)) for slot, begin, values in pieces], dtype=np.int64)
    slot, begin, count = runs.T
    offset = np.arange(count.sum()) - np.repeat(count.cumsum() - count, count)
    return np.repeat(slot, count), np.repeat(begin, count) + offset
