"""The top of a row without waiting for the device. The contract is in `ops`."""

from __future__ import annotations

import torch
from torch import Tensor


def top_tokens(values: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Value and id as one integer each: no two are equal, so the order is one alone.

    In place as far as it goes: beside `values` it holds no more than three times their memory.
    """
    bits = (values + 0.0).view(torch.int32)  # -0.0 is 0.0
    bits ^= (bits >> 31).bitwise_and_(0x7FFFFFFF)  # the bits of negative values fall as they rise
    both = bits.long()
    both <<= 32
    both |= torch.arange(values.shape[1] - 1, -1, -1, device=values.device)
    ids = values.shape[1] - 1 - (both.topk(min(most, values.shape[1])).values & 0xFFFFFFFF)
    return ids, values.gather(1, ids)
