"""The adapters of FlashAttention and FlashInfer call what these libraries document.

The libraries need a GPU. In their place stand functions with their signatures that understand the
arguments as documented and compute by the reference.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import pytest
import torch
from shoal.kernels import reference
from shoal.kernels.gpu.choice import missing
from shoal.kernels.gpu.room import workspace_bytes
from torch import Tensor

from .scene import Shape, make

SHAPE = Shape(queries=(1, 5, 1), keys=(5, 40, 33), tail=2, size=64)
SHAPES = {"plain": SHAPE, "window and cap": replace(SHAPE, window=9, softcap=5.0)}


@pytest.fixture(autouse=True)
def _nothing_is_known_of_libraries() -> Iterator[None]:
    missing.cache_clear()
    yield
    missing.cache_clear()


def installed(monkeypatch: pytest.MonkeyPatch, name: str, **functions: Any) -> None:
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    for key, value in functions.items():
        setattr(module, key, value)
    monkeypatch.setitem(sys.modules, name, module)


def right(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor, starts: Tensor, lengths: Tensor, **named: Any
) -> Tensor:
    """By the reference, of flash-attn's conventions; rows of nobody hold what was there."""
    window, softcap = named["window_size"], named["softcap"]
    assert named["causal"] and (window == (-1, -1) or window[1] == 0)
    out = reference.paged_attention(
        q,
        torch.stack((k, v)),
        table,
        starts,
        lengths,
        scale=named["softmax_scale"],
        window=None if window[0] < 0 else window[0] + 1,
        softcap=softcap or None,
    )
    out[int(starts[-1]) :] = torch.nan
    return out


def third(q, k_cache, v_cache, *, cache_seqlens, page_table, cu_seqlens_q, max_seqlen_q, **named):  # type: ignore[no-untyped-def]
    assert max_seqlen_q == int(cu_seqlens_q.diff().max())
    assert k_cache.shape[1] < 64, "it would read whole tiles of a page"
    return right(q, k_cache, v_cache, page_table, cu_seqlens_q, cache_seqlens, **named)


def second(  # type: ignore[no-untyped-def]
    q, k, v, *, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, block_table, **named
):
    lengths = cu_seqlens_k.diff()
    assert max_seqlen_k == int(lengths.max()) and max_seqlen_q == int(cu_seqlens_q.diff().max())
    return right(q, k, v, block_table, cu_seqlens_q, lengths, **named)


class Wrapper:
    """flashinfer.BatchPrefillWithPagedKVCacheWrapper."""

    def __init__(self, workspace: Tensor, layout: str) -> None:
        assert workspace.dtype == torch.uint8 and layout == "NHD"
        assert len(workspace) >= 128 << 20

    def plan(self, starts, page_start, pages, last_page, heads, kv_heads, size, page, **named):  # type: ignore[no-untyped-def]
        assert starts.device.type == page_start.device.type == last_page.device.type == "cpu"
        counts = page_start.diff()
        self.table = torch.zeros(len(counts), int(counts.max()), dtype=torch.int32)
        for row, count in enumerate(counts.tolist()):
            self.table[row, :count] = pages[page_start[row] : page_start[row] + count].cpu()
        self.starts, self.lengths = starts, ((counts - 1) * page + last_page).int()
        self.shape, self.named = (heads, kv_heads, size), named

    def run(self, q: Tensor, kv: tuple[Tensor, Tensor]) -> Tensor:
        assert self.shape == (q.shape[1], kv[0].shape[2], q.shape[2]) and self.named["causal"]
        left = self.named["window_left"]
        return reference.paged_attention(
            q,
            torch.stack(kv),
            self.table.to(q.device),
            self.starts.to(q.device),
            self.lengths.to(q.device),
            scale=self.named["sm_scale"],
            window=None if left < 0 else left + 1,
            softcap=self.named["logits_soft_cap"],
        )


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("library", ["flash_attn_interface", "flash_attn", "flashinfer"])
def test_an_adapter_says_what_the_library_reads(
    library: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shoal.kernels.gpu import with_flash_attn, with_flashinfer

    installed(
        monkeypatch,
        library,
        flash_attn_with_kvcache=third,
        flash_attn_varlen_func=second,
        BatchPrefillWithPagedKVCacheWrapper=Wrapper,
    )
    backend = with_flashinfer if library == "flashinfer" else with_flash_attn
    shape, place = SHAPES[name], torch.device("cpu")
    tensors, named = make(shape, torch.float32, place)
    table = tensors[2].clamp_max(tensors[1].shape[1] - 1)
    tensors[2] = table
    plan = backend.plan_attention(
        *tensors[1:],
        window=shape.window,
        max_query=max(shape.queries),
        max_kv=max(shape.keys),
    )
    found = backend.paged_attention(*tensors, **named, plan=plan)
    expected = reference.paged_attention(*tensors, **named)
    assert torch.allclose(found, expected, atol=1e-5)
    assert not found[-shape.tail :].any()


def test_large_pages_go_to_the_second(monkeypatch: pytest.MonkeyPatch) -> None:
    from shoal.kernels.gpu import with_flash_attn

    installed(monkeypatch, "flash_attn_interface", flash_attn_with_kvcache=third)
    installed(monkeypatch, "flash_attn", flash_attn_varlen_func=second)
    tensors, named = make(replace(SHAPE, page=256), torch.float32, torch.device("cpu"))
    tensors[2] = tensors[2].clamp_max(tensors[1].shape[1] - 1)
    plan = with_flash_attn.plan_attention(*tensors[1:], max_query=5, max_kv=40)
    found = with_flash_attn.paged_attention(*tensors, **named, plan=plan)
    assert torch.allclose(found, reference.paged_attention(*tensors, **named), atol=1e-5)


def test_a_workspace_is_let_go_of_with_its_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    from shoal.kernels import ops
    from shoal.kernels.gpu import with_flashinfer

    installed(monkeypatch, "flashinfer", BatchPrefillWithPagedKVCacheWrapper=Wrapper)
    ops.release(ops.Choice("FLASHINFER"))
    tensors, named = make(SHAPE, torch.float32, torch.device("cpu"))
    tensors[2] = tensors[2].clamp_max(tensors[1].shape[1] - 1)
    kept = with_flashinfer._wrapper.cache_info
    for _ in range(2):
        with_flashinfer.paged_attention(*tensors, **named)
    assert kept().currsize == 1
    ops.release(ops.Choice("FLASHINFER"))
    assert kept().currsize == 0


def test_a_workspace_holds_what_flashinfer_cuts() -> None:
    """An H200 has 132 processors; heads of 128 in groups of 4 fit in what it asks for at least."""
    least = 128 << 20
    assert workspace_bytes(32, 8, 128, 132) == least
    assert workspace_bytes(64, 8, 128, 132) == 64 * 33 * 128 * 129 * 4 > least
    assert workspace_bytes(32, 2, 128, 132) == 32 * 132 * 128 * 129 * 4


def test_alibi_goes_to_triton(device: torch.device) -> None:
    from shoal.kernels.gpu import with_flash_attn, with_flashinfer

    tensors, named = make(replace(SHAPE, alibi=True), torch.float32, device)
    expected = reference.paged_attention(*tensors, **named)
    tensors[2] = tensors[2].clamp_max(tensors[1].shape[1] - 1)
    for backend in (with_flash_attn, with_flashinfer):
        assert torch.allclose(backend.paged_attention(*tensors, **named), expected, atol=1e-5)
