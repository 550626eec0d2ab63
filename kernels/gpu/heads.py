"""A layer's queries, keys and values, on their way from one product to attention, in one launch:
normed where the model norms them, turned by their positions, keys and values put into their pages.
The contract is in `ops`; each step rounds as the op of its name does.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tile import power_of_two

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ELEMENTS = 1024
"""Pairs of elements that a program turns."""


@triton.jit
def normed(half, scale, weight, dtype: tl.constexpr):
    """Half of each head, in float32, as `rms_norm` gives it."""
    return ((half * scale[:, None]).to(dtype).to(tl.float32) * weight).to(dtype).to(tl.float32)


@triton.jit
def put(
    queries,
    page,
    half,
    head,
    column,
    inside,
    kv_half,
    H: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
):
    """Half of each head to its place: among a token's queries, or in its page."""
    value = half.to(queries.dtype.element_ty)
    tl.store(
        queries + head[:, None] * D + column[None, :], value, mask=inside & (head < H)[:, None]
    )
    pair = head - H
    place = tl.where(pair < G, pair * D, kv_half + (pair - G) * D)
    tl.store(page + place[:, None] + column[None, :], value, mask=inside & (head >= H)[:, None])


@triton.jit
def turn_kernel(
    queries,
    heads,
    kv,
    slots,
    cos,
    sin,
    q_weight,
    k_weight,
    heads_token,
    heads_head,
    cos_row,
    sin_row,
    kv_half,
    kv_slot,
    eps,
    H: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    R: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    NORM: tl.constexpr,
):
    """Some heads of a token, of H queries, G keys and G values; grid (T, heads / HEADS)."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    column = tl.arange(0, BLOCK_R)
    known = column < R
    inside = (head < H + 2 * G)[:, None] & known[None, :]
    own = heads + token * heads_token + head[:, None] * heads_head + column[None, :]
    first = tl.load(own, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(own + R, mask=inside, other=0.0).to(tl.float32)
    low, high = first, second
    if NORM:
        square = tl.sum(first * first, 1) + tl.sum(second * second, 1)
        scale = 1 / tl.sqrt_rn(square / D + eps)
        query = (head < H)[:, None]
        of_q = tl.load(q_weight + column, mask=known, other=0.0).to(tl.float32)[None, :]
        of_k = tl.load(k_weight + column, mask=known, other=0.0).to(tl.float32)[None, :]
        low = normed(low, scale, tl.where(query, of_q, of_k), heads.dtype.element_ty)
        of_q = tl.load(q_weight + R + column, mask=known, other=0.0).to(tl.float32)[None, :]
        of_k = tl.load(k_weight + R + column, mask=known, other=0.0).to(tl.float32)[None, :]
        high = normed(high, scale, tl.where(query, of_q, of_k), heads.dtype.element_ty)
    c = tl.load(cos + token * cos_row + column, mask=known, other=0.0).to(tl.float32)[None, :]
    s = tl.load(sin + token * sin_row + column, mask=known, other=0.0).to(tl.float32)[None, :]
    turns = (head < H + G)[:, None]
    goal = queries + token * (H * D)
    page = kv + tl.load(slots + token) * kv_slot
    put(
        goal, page, tl.where(turns, low * c - high * s, first),
        head, column, inside, kv_half, H, G, D,
    )  # fmt: skip
    put(
        goal + R, page + R, tl.where(turns, high * c + low * s, second),
        head, column, inside, kv_half, H, G, D,
    )  # fmt: skip


def turn_and_store(
    heads: Tensor,
    kv: Tensor,
    slots: Tensor,
    cos: Tensor,
    sin: Tensor,
    norms: tuple[Tensor, Tensor, float] | None,
) -> Tensor:
    num_tokens, num_heads, size = heads.shape
    num_kv_heads = kv.shape[3]
    num_queries = num_heads - 2 * num_kv_heads
    queries = heads.new_empty(num_tokens, num_queries, size)
    if not num_tokens:
        return queries
    block = power_of_two(size // 2)
    count = max(1, min(power_of_two(num_heads), ELEMENTS // block))
    q_weight, k_weight, eps = norms or (queries, queries, 0.0)
    turn_kernel[(num_tokens, triton.cdiv(num_heads, count))](
        queries,
        heads,
        kv,
        slots,
        cos,
        sin,
        q_weight,
        k_weight,
        heads.stride(0),
        heads.stride(1),
        cos.stride(0),
        sin.stride(0),
        kv.stride(0),
        kv.stride(2),
        eps,
        H=num_queries,
        G=num_kv_heads,
        D=size,
        R=size // 2,
        HEADS=count,
        BLOCK_R=block,
        NORM=norms is not None,
        num_warps=4,
    )
    return queries
