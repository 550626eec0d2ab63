"""Every op in plain torch: the oracle of the other backends, and what runs where none of them can.

The contracts are in `ops`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .cpu.ranks import Ranks
from .reference_attention import paged_attention, plan_attention
from .sampling import (
    count_above,
    draw_any,
    draw_cut,
    draw_nucleus,
    greatest,
    keyed_uniform,
    log_softmax,
    mask,
    penalize,
    temper,
    top_tokens,
)

__all__ = [
    "across",
    "add",
    "add_layer_norm",
    "add_rms_norm",
    "count_above",
    "draw_any",
    "draw_cut",
    "draw_nucleus",
    "embed",
    "gather",
    "gelu",
    "greatest",
    "keyed_uniform",
    "layer_norm",
    "linear",
    "log_softmax",
    "logits",
    "mask",
    "paged_attention",
    "penalize",
    "plan_attention",
    "reduce",
    "relu",
    "rms_norm",
    "rope",
    "rope_angles",
    "silu_mul",
    "store_kv",
    "temper",
    "top_tokens",
]


def embed(tokens: Tensor, weight: Tensor, *, start: int = 0) -> Tensor:
    if not len(weight):
        return weight.new_zeros(len(tokens), weight.shape[1])
    rows = tokens - start
    outside = (rows < 0) | (rows >= len(weight))
    return F.embedding(rows.masked_fill(outside, 0), weight).masked_fill_(outside[:, None], 0)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.linear(x, weight, bias)


def logits(x: Tensor, weight: Tensor) -> Tensor:
    return F.linear(x, weight).float()


def gather(x: Tensor, rows: Tensor) -> Tensor:
    return x.index_select(0, rows)


def across(call: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return call(x)


def reduce(ranks: Ranks, call: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return call(x)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    mean = wide.square().mean(-1, keepdim=True)
    return (wide * mean.add_(eps).rsqrt_()).to(x.dtype).mul_(weight)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    return rms_norm(residual.add_(x), weight, eps)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, weight.shape, weight, bias, eps)


def add_layer_norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return layer_norm(residual.add_(x), weight, bias, eps)


def add(x: Tensor, total: Tensor) -> None:
    total.add_(x)


def rope_angles(
    positions: Tensor, inv_freq: Tensor, scale: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    angles = positions[:, None].float() * inv_freq
    cos, sin = angles.cos(), angles.sin()
    if scale != 1:
        cos, sin = cos.mul_(scale), sin.mul_(scale)
    return cos.to(dtype), sin.to(dtype)


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    half = cos.shape[1]
    cos, sin = cos[:, None], sin[:, None]
    first, second = x[..., :half], x[..., half : 2 * half]
    turned = first * sin
    first.mul_(cos).addcmul_(second, sin, value=-1)
    second.mul_(cos).add_(turned)


def store_kv(k: Tensor, v: Tensor, kv: Tensor, slots: Tensor) -> None:
    keys, values = kv.flatten(1, 2).unbind(0)
    keys.index_copy_(0, slots, k)
    values.index_copy_(0, slots, v)


def silu_mul(x: Tensor) -> Tensor:
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)


def gelu(x: Tensor, *, tanh: bool = False) -> Tensor:
    return F.gelu(x, approximate="tanh" if tanh else "none")


def relu(x: Tensor) -> Tensor:
    return F.relu(x)
