"""Paged attention by FlashAttention 3 (Hopper) or 2, where installed. The contract is in `ops`.

What neither takes, a table of alibi, goes to Triton's kernels.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import attention
from .choice import WHOLE_TILES, missing

DTYPES = (torch.bfloat16, torch.float16)


class Plan:
    """A step's attention: the longest of the batch, and where each sequence's keys begin.

    Which rows are nobody's is found when the first layer says how many there are, for all of them.
    """

    def __init__(self, kv_len: Tensor, max_query: int, max_kv: int) -> None:
        self.max_query, self.max_kv = max_query, max_kv
        self.key_start = F.pad(kv_len.cumsum(0, dtype=torch.int32), (1, 0))
        self.ours = attention.Plan(max_query, max_kv)
        self._nobody: Tensor | None = None

    def nobody(self, num_rows: int, query_start: Tensor) -> Tensor:
        """[T, 1, 1] bool: whether a row is of no sequence."""
        if self._nobody is None or len(self._nobody) != num_rows:
            row = torch.arange(num_rows, device=query_start.device)
            self._nobody = (row >= query_start[-1])[:, None, None]
        return self._nobody


def plan_attention(
    kv: Tensor,
    block_table: Tensor,
    query_start: Tensor,
    kv_len: Tensor,
    *,
    window: int | None = None,
    max_query: int,
    max_kv: int,
) -> Plan:
    return Plan(kv_len, max_query, max_kv)


def paged_attention(
    q: Tensor,
    kv: Tensor,
    block_table: Tensor,
    query_start: Tensor,
    kv_len: Tensor,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    alibi: Tensor | None = None,
    plan: Plan | None = None,
) -> Tensor:
    given = (q, kv, block_table, query_start, kv_len)
    if plan is None:
        most = block_table.shape[1] * kv.shape[2]
        plan = plan_attention(*given[1:], window=window, max_query=len(q), max_kv=most)
    if alibi is not None or not len(q):
        return attention.paged_attention(
            *given, scale=scale, window=window, softcap=softcap, alibi=alibi, plan=plan.ours
        )
    options: dict[str, Any] = {
        "softmax_scale": scale,
        "causal": True,
        "window_size": (-1, -1) if window is None else (window - 1, 0),
        "softcap": softcap or 0.0,
    }
    if is_third(q.device, kv.shape[2]):
        library = import_module("flash_attn_interface")

        out = library.flash_attn_with_kvcache(
            q,
            kv[0],
            kv[1],
            cache_seqlens=kv_len,
            page_table=block_table,
            cu_seqlens_q=query_start,
            max_seqlen_q=plan.max_query,
            **options,
        )
    else:
        library = import_module("flash_attn")

        out = library.flash_attn_varlen_func(
            q,
            kv[0],
            kv[1],
            cu_seqlens_q=query_start,
            cu_seqlens_k=plan.key_start,
            max_seqlen_q=plan.max_query,
            max_seqlen_k=plan.max_kv,
            block_table=block_table,
            **options,
        )
    found: Tensor = out.masked_fill_(plan.nobody(len(q), query_start), 0)
    return found


def is_third(device: torch.device, block_size: int) -> bool:
    """Whether FlashAttention 3 serves KV blocks of this size there, and not the second."""
    hopper = device.type != "cuda" or torch.cuda.get_device_capability(device)[0] == 9
    return hopper and block_size < WHOLE_TILES and missing("flash_attn_interface") is None
