"""A rank's part of a step, as the runner knows it, however it is computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ..model.batch import ModelInput


class Forward(Protocol):
    """A rank's part of a step."""

    def hidden(self, batch: ModelInput, handed: Tensor | None = None) -> Tensor:
        """Hidden states: on the last stage [S, d] of the wanted rows, on others [T, d] to hand on.

        `handed` is what the stage before gave. The result is good until the next call.
        """
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """[s, vocabulary] float32 of some rows of the last stage's result."""
        ...

    def greatest(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Each row's greatest logit [s] float32 and its id [s], as `CausalLM.greatest`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The most that a step computes; `width` of what a stage hands on."""

    tokens: int
    sequences: int
    model_len: int
    width: int
