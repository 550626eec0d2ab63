"""What is done element by element: rows of the embedding, rotary embedding, the gated unit, and
putting keys and values into their pages. The contracts are in `ops`; what computes does so in
float32 and rounds once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tile import power_of_two

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BLOCK = 1024


@triton.jit
def embed_kernel(out, tokens, weight, start, V, C, weight_row, BLOCK: tl.constexpr):
    """A piece of a token's row; grid (T, pieces)."""
    token = tl.program_id(0).to(tl.int64)
    row = tl.load(tokens + token) - start
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    held = (row >= 0) & (row < V)
    value = tl.load(weight + row * weight_row + column, mask=held & (column < C), other=0.0)
    tl.store(out + token * C + column, value, mask=column < C)


@triton.jit
def rope_kernel(
    x,
    cos,
    sin,
    num_heads,
    x_token,
    x_head,
    cos_row,
    sin_row,
    R: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """Some heads of a token; grid (T, heads / HEADS)."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    turn = tl.arange(0, BLOCK_R)
    inside = (head < num_heads)[:, None] & (turn < R)[None, :]
    c = tl.load(cos + token * cos_row + turn, mask=turn < R, other=0.0).to(tl.float32)[None, :]
    s = tl.load(sin + token * sin_row + turn, mask=turn < R, other=0.0).to(tl.float32)[None, :]
    place = x + token * x_token + head[:, None] * x_head + turn[None, :]
    first = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(place + R, mask=inside, other=0.0).to(tl.float32)
    tl.store(place, (first * c - second * s).to(x.dtype.element_ty), mask=inside)
    tl.store(place + R, (second * c + first * s).to(x.dtype.element_ty), mask=inside)


@triton.jit
def store_kernel(
    k,
    v,
    kv,
    slots,
    k_token,
    k_head,
    v_token,
    v_head,
    kv_half,
    kv_slot,
    G: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """All heads of a token; grid (T,)."""
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + token)
    element = tl.arange(0, BLOCK)
    inside = element < G * D
    head = element // D
    at = element % D
    key = tl.load(k + token * k_token + head * k_head + at, mask=inside)
    value = tl.load(v + token * v_token + head * v_head + at, mask=inside)
    goal = kv + slot * kv_slot + element
    tl.store(goal, key.to(kv.dtype.element_ty), mask=inside)
    tl.store(goal + kv_half, value.to(kv.dtype.element_ty), mask=inside)


@triton.jit
def silu_mul_kernel(out, x, x_row, F, BLOCK: tl.constexpr):
    """A piece of a row; grid (T, pieces)."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    gate = tl.load(x + row * x_row + column, mask=column < F, other=0.0).to(tl.float32)
    up = tl.load(x + row * x_row + F + column, mask=column < F, other=0.0).to(tl.float32)
    found = gate / (1 + tl.exp(-gate)) * up
    tl.store(out + row * F + column, found.to(out.dtype.element_ty), mask=column < F)


def embed(tokens: Tensor, weight: Tensor, *, start: int = 0) -> Tensor:
    vocab_size, width = weight.shape
    out = weight.new_empty(len(tokens), width)
    if out.numel():
        embed_kernel[len(tokens), triton.cdiv(width, BLOCK)](
            out, tokens, weight, start, vocab_size, width, weight.stride(0), BLOCK=BLOCK
        )
    return out


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    num_tokens, num_heads, _ = x.shape
    turns = cos.shape[1]
    if not x.numel() or not turns:
        return
    block = power_of_two(turns)
    heads = max(1, min(power_of_two(num_heads), BLOCK // block))
    rope_kernel[(num_tokens, triton.cdiv(num_heads, heads))](
        x,
        cos,
        sin,
        num_heads,
        x.stride(0),
        x.stride(1),
        cos.stride(0),
        sin.stride(0),
        R=turns,
        HEADS=heads,
        BLOCK_R=block,
        num_warps=4,
    )


def store_kv(k: Tensor, v: Tensor, kv: Tensor, slots: Tensor) -> None:
    num_tokens, num_heads, size = k.shape
    if not k.numel():
        return
    store_kernel[(num_tokens,)](
        k,
        v,
        kv,
        slots,
        k.stride(0),
        k.stride(1),
        v.stride(0),
        v.stride(1),
        kv.stride(0),
        kv.stride(2),
        G=num_heads,
        D=size,
        BLOCK=power_of_two(num_heads * size),
        num_warps=4,
    )


def silu_mul(x: Tensor) -> Tensor:
    num_rows, width = x.shape[0], x.shape[1] // 2
    out = x.new_empty(num_rows, width)
    if out.numel():
        grid = (num_rows, triton.cdiv(width, BLOCK))
        silu_mul_kernel[grid](out, x, x.stride(0), width, BLOCK=BLOCK, num_warps=4)
    return out
