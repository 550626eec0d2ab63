"""What a rank is doing right now, for those who watch whether it gets on."""

from __future__ import annotations

import time

from torch import nn

IDLE = "idle"


class Progress:
    """Written by the rank's thread, read by any other.

    step       the plan under way, or the last one
    operation  what of it: a layer, sampling, waiting for another rank; `idle` between plans
    ticks      grows with every word of progress
    finished   the last plan that is done
    at_s       when that was, by the monotonic clock
    """

    __slots__ = ("at_s", "finished", "operation", "step", "ticks")

    def __init__(self) -> None:
        self.step = self.finished = -1
        self.operation = IDLE
        self.ticks = 0
        self.at_s: float | None = None

    def at(self, operation: str) -> None:
        """An operation begins."""
        self.operation = operation
        self.ticks += 1

    def done(self, step: int) -> None:
        """A plan is done."""
        self.finished, self.at_s = step, time.monotonic()
        self.at(IDLE)

    @property
    def since_s(self) -> float | None:
        """Seconds since a plan was done; None before the first."""
        return None if self.at_s is None else time.monotonic() - self.at_s

    def watch(self, model: nn.Module) -> None:
        """Tell when each layer of a model begins: a long prompt in a large model is progress."""
        for path, module in model.named_modules():
            if path.rpartition(".")[2].isdigit():
                word = f"layer {path.rpartition('.')[2]}"
                module.register_forward_pre_hook(lambda *_, word=word: self.at(word))
