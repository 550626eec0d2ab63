"""Penalties in Triton: count each row's tokens in a table of the vocabulary, then go over it once.

The contract is in `ops`. Counts are integers, so the order in which they come together is free.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024

SEEN = tl.constexpr(1 << 30)
"""Set in a count where the prompt holds the token."""


@triton.jit(do_not_specialize=["ids_row"])
def count_kernel(
    counts, ids, num_prompt, num_tokens, ids_row, V, BLOCK: tl.constexpr, SEEN: tl.constexpr
):
    """Put a piece of a row's tokens into its counts; grid (R, pieces)."""
    row = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    known = place < tl.load(num_tokens + row)
    token = tl.load(ids + row * ids_row + place, mask=known, other=0).to(tl.int64)
    token = tl.minimum(tl.maximum(token, 0), V - 1)
    output = place >= tl.load(num_prompt + row)
    goal = counts + row * V + token
    tl.atomic_add(goal, 1, mask=known & output)
    tl.atomic_or(goal, SEEN, mask=known & (place < tl.load(num_prompt + row)))


@triton.jit
def penalize_kernel(
    logits,
    counts,
    rows,
    repetition,
    frequency,
    presence,
    logits_row,
    V,
    BLOCK: tl.constexpr,
    SEEN: tl.constexpr,
):
    """Penalize a piece of a row's vocabulary; grid (R, pieces)."""
    row = tl.program_id(0).to(tl.int64)
    token = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = token < V
    seen = tl.load(counts + row * V + token, mask=inside, other=0)
    count = (seen & (SEEN - 1)).to(tl.float32)
    goal = logits + tl.load(rows + row) * logits_row + token
    value = tl.load(goal, mask=inside & (seen != 0), other=0.0)
    factor = tl.load(repetition + row)
    value = tl.where(value > 0, tl.div_rn(value, factor), value * factor)
    value -= tl.load(frequency + row) * count
    value -= tl.where(count > 0, tl.load(presence + row), 0.0)
    tl.store(goal, value, mask=inside & (seen != 0))


def penalize(
    logits: Tensor,
    rows: Tensor,
    ids: Tensor,
    num_prompt: Tensor,
    num_tokens: Tensor,
    repetition: Tensor,
    frequency: Tensor,
    presence: Tensor,
) -> None:
    num_rows, vocab_size = len(rows), logits.shape[1]
    if not num_rows:
        return
    counts = torch.zeros(num_rows, vocab_size, dtype=torch.int32, device=logits.device)
    count_kernel[num_rows, triton.cdiv(ids.shape[1], BLOCK)](
        counts, ids, num_prompt, num_tokens, ids.stride(0), vocab_size, BLOCK=BLOCK, SEEN=SEEN
    )
    penalize_kernel[num_rows, triton.cdiv(vocab_size, BLOCK)](
        logits,
        counts,
        rows,
        repetition,
        frequency,
        presence,
        logits.stride(0),
        vocab_size,
        BLOCK=BLOCK,
        SEEN=SEEN,
        enable_fp_fusion=False,  # the bits of torch's operations, one by one
    )
