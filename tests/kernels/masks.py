"""Logits, and what the mask op is asked to do to some of their rows."""

from __future__ import annotations

import torch
from torch import Tensor


def _words(allowed: list[int], num_words: int) -> list[int]:
    """Words of 32 bits, as signed numbers, with those of the allowed ids set."""
    words = [0] * num_words
    for token in allowed:
        words[token // 32] |= 1 << token % 32
    return [word - (word >> 31 << 32) for word in words]


def masked(vocab_size: int, num_masks: int) -> tuple[Tensor, ...]:
    """The arguments of `ops.mask`: rows with a mask and without, with no edit, with few, with one
    for each token; the fifth has a NaN, others infinities.
    """
    random = torch.Generator().manual_seed(5)
    logits = torch.randn(10, vocab_size, generator=random)
    logits[3, vocab_size // 2], logits[5, -1], logits[6, 0] = torch.nan, torch.inf, -torch.inf
    num_words = -(-vocab_size // 32)
    masks = [_words(ids, num_words) for ids in ([*range(0, vocab_size, 3)], [vocab_size - 1])]
    allowed = torch.tensor(masks[:num_masks], dtype=torch.int32).reshape(num_masks, num_words)
    which = torch.arange(8) % 3 - 1 if num_masks else torch.full((8,), -1)
    counts = torch.tensor([0, 1, vocab_size, 3, 7, 0, 2, vocab_size]).clamp_max(vocab_size)
    ids = [torch.randperm(vocab_size, generator=random)[:n].sort().values for n in counts.tolist()]
    amounts = torch.randn(int(counts.sum()), generator=random)
    amounts[::3] = -torch.inf
    starts = torch.cat((torch.zeros(1, dtype=torch.int64), counts.cumsum(0)))
    return logits, torch.arange(8, 0, -1), allowed, which, starts, torch.cat(ids).int(), amounts
