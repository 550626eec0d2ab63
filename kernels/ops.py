"""The arithmetic of a model's step: every op, its contract, and which backend computes it.

This is the only face of the folder. A backend is a module with functions of these names and
signatures; an op that it lacks, or a dtype that it does not take, falls to the next one and in the
end to `reference`, which states what is right.

T tokens, H query heads, G key-value heads (H a multiple of G), D head size, B sequences, N blocks
of P tokens in a paged cache, M blocks in the longest table. Floating tensors are float32, bfloat16
or float16, those of one call alike unless said otherwise; strides are free but for the last one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .choice import backend as _backend
from .choice import computed_by as computed_by
from .choice import dtype_gap as dtype_gap
from .choice import fused as _fused
from .choice import is_slow as is_slow
from .choice import page_columns as page_columns
from .choice import release as release
from .choice import serving_dtype as serving_dtype
from .choice import use as use
from .cpu import backend as native
from .cpu import panels
from .cpu.panels import Packed
from .cpu.ranks import Ranks
from .cpu.threads import current_pool
from .gpu.backends import Choice as Choice
from .sampling_ops import count_above as count_above
from .sampling_ops import draw_any as draw_any
from .sampling_ops import draw_cut as draw_cut
from .sampling_ops import draw_nucleus as draw_nucleus
from .sampling_ops import greatest as greatest
from .sampling_ops import keyed_uniform as keyed_uniform
from .sampling_ops import log_softmax as log_softmax
from .sampling_ops import mask as mask
from .sampling_ops import penalize as penalize
from .sampling_ops import temper as temper
from .sampling_ops import top_tokens as top_tokens


def pack(weight: Tensor, *, paired: bool = False) -> Tensor | Packed:
    """The weight [C, K] in the order in which its device reads it best: a copy, or itself.

    What comes of it stands in `linear`, `logits` and `embed` where the weight would. `paired`: it
    is a gate's and its partner's, one below the other, and is for `gated_linear` alone.
    """
    if not panels.packs(weight):
        return weight
    return panels.pack(current_pool(), weight.detach(), paired=paired)


def packed_bytes(weight: Tensor, *, paired: bool = False) -> int:
    """Bytes that `pack(weight)` takes on CPUs; shape and dtype alone decide."""
    if not panels.packs(weight):
        return weight.nbytes
    outputs, inputs = weight.shape
    return panels.num_bytes(outputs, inputs, weight.dtype, paired=paired)


def embed(tokens: Tensor, weight: Tensor | Packed, *, start: int = 0) -> Tensor:
    """Rows of an embedding table.

    tokens [T] int64; weight [V, C], the rows `start` to `start + V` of the vocabulary. A token
    outside of them gives zeros, so that the sum over a table's shards is the whole one's row.
    Returns [T, C], a fresh tensor.
    """
    return _backend("embed", weight, tokens)(tokens, weight, start=start)  # type: ignore[no-any-return]


def linear(x: Tensor, weight: Tensor | Packed, bias: Tensor | None = None) -> Tensor:
    """`x @ weight.T + bias`.

    x [T, K]; weight [C, K]; bias [C]. Accumulates in float32; returns [T, C] in x's dtype.
    """
    if x.shape[-1] != weight.shape[-1]:
        raise ValueError(f"linear: x {tuple(x.shape)} does not fit weight {tuple(weight.shape)}")
    return _backend("linear", x)(x, weight, bias)  # type: ignore[no-any-return]


def logits(x: Tensor, weight: Tensor | Packed) -> Tensor:
    """`x @ weight.T` in float32.

    x [S, K]; weight [V, K]. Accumulates in float32; returns [S, V] float32, rounded to x's dtype in
    between where a backend has no other way.
    """
    if x.shape[-1] != weight.shape[-1]:
        raise ValueError(f"logits: x {tuple(x.shape)} does not fit weight {tuple(weight.shape)}")
    return _backend("logits", x)(x, weight)  # type: ignore[no-any-return]


def greatest_logit(x: Tensor, weight: Tensor | Packed) -> tuple[Tensor, Tensor]:
    """`greatest(logits(x, weight))`, without ever writing the logits where a backend can."""
    if isinstance(weight, Packed):
        return native.greatest_logit(x, weight)
    return greatest(logits(x, weight))


def gated_linear(x: Tensor, weight: Tensor | Packed, bias: Tensor | None = None) -> Tensor:
    """`silu_mul(linear(x, weight, bias))`: weight [2 F, K], the gate's F rows first."""
    if isinstance(weight, Packed) and weight.paired:
        return native.gated_linear(x, weight, bias)
    return silu_mul(linear(x, weight, bias))


def gather(x: Tensor, rows: Tensor) -> Tensor:
    """Some rows of x: x [T, C]; rows [S] int64. Returns [S, C]."""
    return _backend("gather", x)(x, rows)  # type: ignore[no-any-return]


def across(call: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`call(x)`, of x's shape and dtype: something between ranks that is no op.

    Where steps are recorded it cuts the record in two.
    """
    return _backend("across", x)(call, x)  # type: ignore[no-any-return]


def reduce(ranks: Ranks, call: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The sum of x [T, C] over the ranks of a node, in their order; it may use x's memory.

    Where steps are recorded it is part of the record, unless that cannot hold it: it is `call(x)`
    then, as it is elsewhere. All ranks do the same.
    """
    return _backend("reduce", x)(ranks, call, x)  # type: ignore[no-any-return]


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root mean square norm over the last dimension.

    x [..., C]; weight [C]. Computed in float32. Rounded to x's dtype before the product with the
    weight, as Llama's checkpoints were trained, or once after it, where a backend keeps float32.
    Returns x's shape and dtype. Source: Zhang and Sennrich, 2019.
    """
    if x.shape[-1:] != weight.shape:
        raise ValueError(f"rms_norm: x {tuple(x.shape)} does not fit weight {tuple(weight.shape)}")
    return _backend("rms_norm", x)(x, weight, eps)  # type: ignore[no-any-return]


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Add x to the residual stream in place, and the norm of the sum.

    x, residual [T, C]; weight [C]. The sum is rounded to the dtype before it is normed; a recorded
    step may keep it in float32. Returns `rms_norm(residual + x, weight, eps)`; x is left as it was.
    """
    if x.shape != residual.shape:
        raise ValueError(
            f"add_rms_norm: x {tuple(x.shape)} is not of the residual's shape "
            f"{tuple(residual.shape)}"
        )
    return _backend("add_rms_norm", x)(x, residual, weight, eps)  # type: ignore[no-any-return]


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Norm to mean 0 and variance 1 over the last dimension, times weight, plus bias.

    x [..., C]; weight, bias [C]. Computed in float32 and rounded once. Returns x's shape and dtype.
    Source: Ba et al., 2016.
    """
    if not x.shape[-1:] == weight.shape == bias.shape:
        raise ValueError(
            f"layer_norm: x {tuple(x.shape)} does not fit weight {tuple(weight.shape)} and bias "
            f"{tuple(bias.shape)}"
        )
    return _backend("layer_norm", x)(x, weight, bias, eps)  # type: ignore[no-any-return]


def add_layer_norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Add x to the residual stream in place, and the norm of the sum.

    x, residual [T, C]; weight, bias [C]. The sum is rounded as in `add_rms_norm`. Returns
    `layer_norm(residual + x, weight, bias, eps)`; x is left as it was.
    """
    if x.shape != residual.shape:
        raise ValueError(
            f"add_layer_norm: x {tuple(x.shape)} is not of the residual's shape "
            f"{tuple(residual.shape)}"
        )
    return _backend("add_layer_norm", x)(x, residual, weight, bias, eps)  # type: ignore[no-any-return]


def add(x: Tensor, total: Tensor) -> None:
    """Add x to `total` in place. Both [T, C]; x is left as it was."""
    if x.shape != total.shape:
        raise ValueError(f"add: x {tuple(x.shape)} is not of the total's {tuple(total.shape)}")
    _backend("add", x)(x, total)


def rope_angles(
    positions: Tensor, inv_freq: Tensor, scale: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of `position * inv_freq`, times `scale`.

    positions [T] int64; inv_freq [R] float32. Computed in float32, returned as two [T, R] of
    `dtype`, or float32 where a backend keeps it. Once a step: all layers of the same frequencies
    share them.
    """
    return _backend("rope_angles", inv_freq, positions)(positions, inv_freq, scale, dtype)  # type: ignore[no-any-return]


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Rotate heads by their token's position, in place.

    x [T, H, D]; cos, sin [T, R] with 2 R <= D. Element i < R turns with element R + i by angle i
    (the half-split order of Hugging Face checkpoints); elements from 2 R on stay.
    Source: RoFormer (Su et al., 2021).
    """
    if cos.shape != sin.shape or cos.shape[0] != x.shape[0] or 2 * cos.shape[1] > x.shape[2]:
        raise ValueError(
            f"rope: angles {tuple(cos.shape)} and {tuple(sin.shape)} do not fit heads "
            f"{tuple(x.shape)}"
        )
    _backend("rope", x)(x, cos, sin)


def store_kv(k: Tensor, v: Tensor, kv: Tensor, slots: Tensor) -> None:
    """Put new keys and values into their places of a paged cache.

    k, v [T, G, D]; kv [2, N, P, G, C], keys then values, packed, where C is D, or on CPUs
    `page_columns` of it; slots [T] int64: block * P + offset. Slots are distinct, but for those of
    block 0, whose content means nothing. How a block's content is ordered inside is its backend's
    business, the same for `paged_attention`.
    """
    fits = k.shape == v.shape and k.shape[1] == kv.shape[3] and _holds(kv, k.shape[2])
    if not fits or slots.shape[0] != k.shape[0]:
        raise ValueError(
            f"store_kv: keys {tuple(k.shape)}, values {tuple(v.shape)} and slots "
            f"{tuple(slots.shape)} do not fit a cache of {tuple(kv.shape)}"
        )
    _backend("store_kv", kv, k)(k, v, kv, slots)


def turn_and_store(
    heads: Tensor,
    kv: Tensor,
    slots: Tensor,
    cos: Tensor,
    sin: Tensor,
    norms: tuple[Tensor, Tensor, float] | None = None,
) -> Tensor:
    """From the product of a layer's queries, keys and values to what attends: [T, H, D] queries.

    heads [T, H + 2 G, D], which may be overwritten: queries, keys, values. Queries and keys go
    through `rms_norm` first where `norms` (weight of queries [D], of keys [D], eps) are given, then
    through `rope`; keys and values through `store_kv`.
    """
    num_kv_heads = kv.shape[3]
    num_queries = heads.shape[1] - 2 * num_kv_heads
    if num_queries < 1 or num_queries % num_kv_heads or not _holds(kv, heads.shape[2]):
        raise ValueError(
            f"turn_and_store: heads {tuple(heads.shape)} do not fit a cache of {tuple(kv.shape)}"
        )
    whole = _fused("turn_and_store", heads)
    if whole is not None and 2 * cos.shape[1] == heads.shape[2]:
        return whole(heads, kv, slots, cos, sin, norms)  # type: ignore[no-any-return]
    q, k, v = heads.split((num_queries, num_kv_heads, num_kv_heads), dim=1)
    if norms is None:
        rope(heads[:, : num_queries + num_kv_heads], cos, sin)
    else:
        q, k = rms_norm(q, norms[0], norms[2]), rms_norm(k, norms[1], norms[2])
        rope(q, cos, sin)
        rope(k, cos, sin)
    store_kv(k, v, kv, slots)
    return q  # type: ignore[no-any-return]


def plan_attention(
    kv: Tensor,
    block_table: Tensor,
    query_start: Tensor,
    kv_len: Tensor,
    *,
    window: int | None = None,
    max_query: int,
    max_kv: int,
) -> Any:
    """What `paged_attention` can know before it sees a query: shared by a step's layers.

    kv is the cache of any layer of the group; the rest as in `paged_attention`, with the longest
    query and the most keys of the batch as plain numbers. Opaque: only `paged_attention` of the
    same backend reads it.
    """
    return _backend("plan_attention", kv, kv_len)(
        kv, block_table, query_start, kv_len, window=window, max_query=max_query, max_kv=max_kv
    )


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
    plan: Any = None,
) -> Tensor:
    """Causal attention of packed queries over a paged cache.

    Shapes: q [T, H, D]; kv [2, N, P, G, C] as in `store_kv`; block_table [B, M] int32; query_start
    [B+1] int32; kv_len [B] int32. Sequence b has the queries query_start[b] to query_start[b+1],
    n_b of them. Query i of it sees keys 0 .. kv_len[b] - n_b + i, and of those the last `window`.
    Query head h reads key-value head h // (H / G). `softcap` bounds the scores to +-softcap by
    tanh.
    `alibi` [H, L] float32, L no less than any kv_len: alibi[h, j] is added to what head h makes of
    the key at position j of its sequence, behind scale and softcap (Press et al., 2022).
    Rows of the table past kv_len are never read, nor is a key that no query of its sequence sees.
    Rows of q past query_start[B] come back as zeros.
    Accumulates in float32; returns [T, H, D] in q's dtype. `plan`: `plan_attention` of the same
    tables and window, else it is made here. Raises ValueError on any other shape.
    Source: FlashAttention-2 (Dao, 2023), over pages as in vLLM (Kwon et al., 2023).
    """
    num_heads, head_size = q.shape[1:]
    if kv.shape[0] != 2 or not _holds(kv, head_size) or num_heads % kv.shape[3]:
        raise ValueError(
            f"paged_attention: queries {tuple(q.shape)} do not fit a cache of {tuple(kv.shape)}"
        )
    if not len(block_table) == len(kv_len) == len(query_start) - 1:
        raise ValueError(
            f"paged_attention: {len(block_table)} block tables, {len(kv_len)} lengths and "
            f"{len(query_start)} query starts do not describe one batch"
        )
    if alibi is not None and (alibi.dim() != 2 or len(alibi) != num_heads):
        raise ValueError(
            f"paged_attention: an alibi of {tuple(alibi.shape)} does not fit {num_heads} heads"
        )
    return _backend("paged_attention", q)(  # type: ignore[no-any-return]
        q,
        kv,
        block_table,
        query_start,
        kv_len,
        scale=scale,
        window=window,
        softcap=softcap,
        alibi=alibi,
        plan=plan,
    )


def _holds(kv: Tensor, head_size: int) -> bool:
    """Whether a cache is one of heads of this size."""
    own = page_columns(kv.device, kv.dtype, head_size, kv.shape[2])
    return kv.shape[4] in (head_size, own)


def silu_mul(x: Tensor) -> Tensor:
    """The gated unit `silu(gate) * up`.

    x [T, 2 F], the gate's F columns first. Returns [T, F]. Source: GLU Variants (Shazeer, 2020).
    """
    return _backend("silu_mul", x)(x)  # type: ignore[no-any-return]


def gelu(x: Tensor, *, tanh: bool = False) -> Tensor:
    """`x * P(X <= x)` of a standard normal X, by erf, or by its `tanh` approximation.

    x [T, C]. Computed in float32; returns x's shape and dtype.
    Source: Hendrycks and Gimpel, 2016.
    """
    return _backend("gelu", x)(x, tanh=tanh)  # type: ignore[no-any-return]


def relu(x: Tensor) -> Tensor:
    """`max(x, 0)`. x [T, C]; returns its shape and dtype."""
    return _backend("relu", x)(x)  # type: ignore[no-any-return]
