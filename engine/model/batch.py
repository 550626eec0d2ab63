"""What a model's forward pass eats: one packed batch of tokens over a paged cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInput:
    """T tokens of B sequences, packed row after row.

    tokens        [T] int64
    positions     [T] int64, of each token in its sequence
    query_start   [B+1] int32, where each sequence's tokens begin in T
    kv_len        [B] int32, keys each sequence has once these tokens are stored
    block_tables  a cache group: [B, M] int32, block ids by position
    slots         a cache group: [T] int64, where a token's keys and values go: block * block_size +
    offset
    kv            a layer: [2, N, P, G, D], its pages of keys and values (N blocks of P tokens, G
    heads)
    group_of      a layer: which cache group it belongs to
    wanted        [S] int64, rows of T whose logits are wanted
    max_query, max_kv  the longest of each over the batch, as plain numbers
    """

    tokens: Tensor
    positions: Tensor
    query_start: Tensor
    kv_len: Tensor
    block_tables: Sequence[Tensor]
    slots: Sequence[Tensor]
    kv: Sequence[Tensor]
    group_of: Sequence[int]
    wanted: Tensor
    max_query: int
    max_kv: int
