"""What rows may not sample, and what is added to their logits, in Triton: one pass over each row.

The contract is in `ops`. A program finds the edits of its piece by halving, since they rise by id.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


@triton.jit
def first_from(ids, low, high, token):
    """The first of the places low to high whose id is at least `token`; high where none is."""
    while low < high:
        middle = (low + high) // 2
        if tl.load(ids + middle) < token:
            low = middle + 1
        else:
            high = middle
    return low


@triton.jit(do_not_specialize=["allowed_row"])
def mask_kernel(
    broken,
    logits,
    rows,
    allowed,
    which,
    starts,
    ids,
    amounts,
    logits_row,
    allowed_row,
    V,
    BLOCK: tl.constexpr,
):
    """Edit a piece of a row's vocabulary; grid (R, pieces)."""
    row = tl.program_id(0).to(tl.int64)
    begin = tl.program_id(1) * BLOCK
    token = begin + tl.arange(0, BLOCK)
    inside = token < V
    goal = logits + tl.load(rows + row) * logits_row + token
    value = tl.load(goal, mask=inside, other=0.0)
    if tl.max((value != value).to(tl.int32), 0) > 0:
        tl.store(broken + row, True)
    own = tl.load(which + row)
    words = allowed + own * allowed_row + token // 32
    word = tl.load(words, mask=inside & (own >= 0), other=-1)
    value = tl.where(((word >> (token % 32)) & 1) != 0, value, float("-inf"))
    last = tl.load(starts + row + 1)
    first = first_from(ids, tl.load(starts + row), last, begin)
    last = first_from(ids, first, last, begin + BLOCK)
    for place in range(first, last):
        amount = tl.load(amounts + place)
        edited = tl.where(amount == float("-inf"), amount, value + amount)
        value = tl.where(token == tl.load(ids + place), edited, value)
    tl.store(goal, value, mask=inside)


def mask(
    logits: Tensor,
    rows: Tensor,
    allowed: Tensor,
    which: Tensor,
    starts: Tensor,
    ids: Tensor,
    amounts: Tensor,
) -> Tensor:
    num_rows, vocab_size = len(rows), logits.shape[1]
    broken = torch.zeros(num_rows, dtype=torch.bool, device=logits.device)
    if num_rows:
        mask_kernel[num_rows, triton.cdiv(vocab_size, BLOCK)](
            broken,
            logits,
            rows,
            allowed,
            which,
            starts,
            ids,
            amounts,
            logits.stride(0),
            allowed.stride(0),
            vocab_size,
            BLOCK=BLOCK,
        )
    return broken
