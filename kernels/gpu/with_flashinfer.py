"""Paged attention by FlashInfer, where installed. The contract is in `ops`.

FlashInfer plans a step on the host, from lengths that lie on the device: once a step and cache
group the host waits for them. A table of alibi goes to Triton's kernels.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import attention
from .room import workspace_bytes

DTYPES = (torch.bfloat16, torch.float16)


class Plan:
    """A step's lengths and pages, and FlashInfer's own plan once the first query is seen."""

    def __init__(
        self,
        kv: Tensor,
        block_table: Tensor,
        query_start: Tensor,
        kv_len: Tensor,
        max_query: int,
        max_kv: int,
    ) -> None:
        self.ours = attention.Plan(max_query, max_kv)
        self.page = kv.shape[2]
        self.starts = query_start.cpu()
        lengths = kv_len.cpu()
        pages = -(-lengths // self.page)
        self.page_start = F.pad(pages.cumsum(0, dtype=torch.int32), (1, 0))
        used = torch.arange(block_table.shape[1]) < pages[:, None]
        self.pages = block_table[used.to(block_table.device)]
        self.last_page = torch.where(lengths > 0, (lengths - 1) % self.page + 1, 0).int()
        self._planned: dict[tuple[Any, ...], Any] = {}

    def wrapper(self, q: Tensor, kv: Tensor, *options: Any) -> Any:
        """What runs queries of this shape with these options: scale, window, soft cap."""
        key = (q.shape[1:], kv.shape[2:], *options)
        if key not in self._planned:
            scale, window, softcap = options
            found = _wrapper(q.device, key)
            found.plan(
                self.starts,
                self.page_start,
                self.pages,
                self.last_page,
                q.shape[1],
                kv.shape[3],
                q.shape[2],
                self.page,
                causal=True,
                sm_scale=scale,
                window_left=-1 if window is None else window - 1,
                logits_soft_cap=softcap,
                q_data_type=q.dtype,
                kv_data_type=kv.dtype,
            )
            self._planned[key] = found
        return self._planned[key]


@cache
def _wrapper(device: torch.device, key: tuple[Any, ...]) -> Any:
    """FlashInfer's object for one kind of layer, planned anew each step: cache groups differ in
    what they ask of it, so none plans over another's plan.
    """
    library = import_module("flashinfer")
    (heads, size), (_, kv_heads, _) = key[:2]
    num_bytes = workspace_bytes(heads, kv_heads, size, _num_processors(device))
    workspace = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
    return library.BatchPrefillWithPagedKVCacheWrapper(workspace, "NHD")


def _num_processors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def release() -> None:
    """Let go of what is kept from step to step: a workspace for each kind of layer."""
    _wrapper.cache_clear()


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
    return Plan(kv, block_table, query_start, kv_len, max_query, max_kv)


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
    if plan is None:
        most = block_table.shape[1] * kv.shape[2]
        plan = Plan(kv, block_table, query_start, kv_len, len(q), most)
    if alibi is not None or not len(q):
        return attention.paged_attention(
            q, kv, block_table, query_start, kv_len,
            scale=scale, window=window, softcap=softcap, alibi=alibi, plan=plan.ours,
        )  # fmt: skip
    num_rows = int(plan.starts[-1])
    out = torch.zeros_like(q, memory_format=torch.contiguous_format)
    runner = plan.wrapper(q, kv, scale, window, softcap)
    out[:num_rows] = runner.run(q[:num_rows].contiguous(), (kv[0], kv[1]))
    return out
