"""The ops whose fast forms let a row's bits depend on its batch, in a form that does not."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from . import attention
from .attention import DTYPES as DTYPES
from .attention import plan_attention as plan_attention
from .linear import linear as linear


def paged_attention(*tensors: Tensor, **options: Any) -> Tensor:
    return attention.paged_attention(*tensors, **options, exact=True)


def logits(x: Tensor, weight: Tensor) -> Tensor:
    return linear(x, weight).float()
