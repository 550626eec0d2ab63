"""What a rank is doing right now, for those who watch whether it gets on."""

from __future__ import annotations

import time
from collections import deque

from torch import nn

IDLE = "idle"
KEPT = 256
"""Steps that are remembered."""


class Progress:
    """Written by the rank's thread, read by any other.

    step       the plan under way, or the last one
    operation  what of it: a layer, sampling, waiting for another rank; `idle` between plans
    ticks      grows with every word of progress
    finished   the last plan that is done
    timeline   the last steps: number, when it began and ended (s, monotonic), and how much of that
               went by waiting for another stage
    gaps       for how long the device had nothing to do between one step and the next (s)
    """

    __slots__ = ("_begun", "finished", "gaps", "operation", "step", "ticks", "timeline")

    def __init__(self) -> None:
        self.step = self.finished = -1
        self.operation = IDLE
        self.ticks = 0
        self.timeline: deque[tuple[int, float, float, float]] = deque(maxlen=KEPT)
        self.gaps: deque[float] = deque(maxlen=KEPT)
        self._begun: deque[tuple[int, float, float]] = deque(maxlen=KEPT)

    def begin(self, step: int) -> None:
        """A plan begins."""
        self.step = step
        self._begun.append((step, time.monotonic(), 0.0))
        self.at("reading the plan")

    def waited(self, since: float) -> None:
        """The wait for another stage, which began at `since`, is over."""
        step, begun, waited = self._begun.pop()
        self._begun.append((step, begun, waited + time.monotonic() - since))

    def at(self, operation: str) -> None:
        """An operation begins."""
        self.operation = operation
        self.ticks += 1

    def done(self, step: int) -> None:
        """A plan is done, the oldest that has begun and is not."""
        _, begun, waited = self._begun.popleft()
        self.timeline.append((step, begun, time.monotonic(), waited))
        self.finished = step
        self.at(IDLE if not self._begun else "computing")

    @property
    def since_s(self) -> float | None:
        """Seconds since a plan was done; None before the first."""
        return time.monotonic() - self.timeline[-1][2] if self.timeline else None

    def watch(self, model: nn.Module) -> None:
        """Tell when each layer of a model begins: a long prompt in a large model is progress."""
        for path, module in model.named_modules():
            if path.rpartition(".")[2].isdigit():
                word = f"layer {path.rpartition('.')[2]}"
                module.register_forward_pre_hook(lambda *_, word=word: self.at(word))
