"""Our paged attention as one of transformers' own attention functions.

A module that attends calls the function that its configuration names, with heads of the packed
batch: [1, H, T, D]. It finds its pages by the seat that it was given when the model was built. No
mask function goes by that name, so that transformers builds no mask.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.modeling_utils import AttentionInterface

from ..pages import Pages

NAME = "shoal_paged"


class Step:
    """The pages of the step under way, a layer each."""

    def __init__(self) -> None:
        self.pages: list[Pages] = []


class Seat:
    """Which layer a module attends for."""

    def __init__(self, step: Step, layer: int) -> None:
        self.step = step
        self.layer = layer

    @property
    def pages(self) -> Pages:
        return self.step.pages[self.layer]


def paged(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Store keys and values, attend, and return [1, T, H, D].

    `probe` has seen to it that what else a module passes changes nothing.
    """
    pages: Pages = module.seat.pages  # type: ignore[union-attr, assignment]
    q, k, v = (heads[0].transpose(0, 1).to(pages.kv.dtype) for heads in (query, key, value))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    found = pages.attend(q, k, v, scale=scale, softcap=softcap)
    return found.view(1, *q.shape).to(query.dtype), None


AttentionInterface.register(NAME, paged)
