"""The paged cache on one rank: a tensor a layer, blocks shared out by cache group."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..plan import CacheSpec, Copy
from .device import Device


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """Keys and values of every layer.

    layers[l]   [2, N, P, G, D]: keys, then values, of N blocks of P tokens, G heads of D columns
    group_of[l] the cache group of layer l; a block id means the same place in all its layers

    What was never written may be any bit pattern, NaN included; but 0 where the device reads it.
    """

    layers: tuple[Tensor, ...]
    groups: tuple[CacheSpec, ...]
    group_of: tuple[int, ...]
    block_size: int
    device: Device

    def beginning(self, tokens: int) -> list[Tensor]:
        """The memory of the blocks that are handed out first, for so many tokens a group: a layer's
        keys, its values, and so on.
        """
        blocks = -(-tokens // self.block_size) + 1
        return [plane[:blocks] for layer in self.layers for plane in layer]

    def copy(self, copies: Sequence[Copy]) -> None:
        """Copy whole blocks, as if all at once: a target may be another copy's source."""
        by_group: dict[int, list[Copy]] = defaultdict(list)
        for copy in copies:
            by_group[copy.group].append(copy)
        for group, moves in by_group.items():
            places = np.array([(move.source, move.target) for move in moves], dtype=np.int64)
            source, target = self.device.upload(places).unbind(1)
            for layer, of in zip(self.layers, self.group_of, strict=True):
                if of == group:
                    layer.index_copy_(1, target, layer.index_select(1, source))


def allocate(
    specs: Sequence[CacheSpec],
    groups: Sequence[CacheSpec],
    num_blocks: int,
    block_size: int,
    dtype: torch.dtype,
    device: Device,
) -> Cache:
    """A cache of `num_blocks` blocks a group for layers of these specs.

    `groups` are those of the whole model, of which a stage may have some layers.
    """

    def layer(spec: CacheSpec) -> Tensor:
        columns = device.page_columns(dtype, spec.head_size, block_size)
        shape = (2, num_blocks, block_size, spec.num_kv_heads, columns)
        given = device.large(*shape, dtype=dtype)
        return given.zero_() if device.reads_past_ends else given

    layers = tuple(map(layer, specs))
    return Cache(
        layers=layers,
        groups=tuple(groups),
        group_of=tuple(groups.index(spec) for spec in specs),
        block_size=block_size,
        device=device,
    )
