"""What a rank is doing right now, for those who watch whether it gets on."""

from __future__ import annotations

import time
from collections import deque

from torch import nn

from .pace import Pace

IDLE = "idle"
KEPT = 256
"""Steps that are remembered."""


class Progress:
    """Written by the rank's thread, read by any other.

    step       the plan under way, or the last one
    operation  what of it: a layer, sampling, waiting for another rank; `idle` between plans
    ticks      grows with every word of progress
    finished   the last plan that is done
    expected_s how long it should be silent at a stretch, as far as measured: see `Pace`
    timeline   the last steps: number, when it began and ended (s, monotonic), and how much of that
               went by waiting for another stage
    """

    __slots__ = (
        *("_begun", "_last", "_longest", "_num_tokens", "_pace", "_waited"),
        *("expected_s", "finished", "operation", "step", "ticks", "timeline"),
    )

    def __init__(self) -> None:
        self.step = self.finished = -1
        self.operation = IDLE
        self.ticks = 0
        self.timeline: deque[tuple[int, float, float, float]] = deque(maxlen=KEPT)
        self.expected_s = 0.0
        self._pace = Pace()
        self._num_tokens = 0
        self._begun = self._waited = self._last = self._longest = 0.0

    def begin(self, step: int, num_tokens: int) -> None:
        """A plan of so many tokens begins."""
        self.step, self._begun, self._waited = step, time.monotonic(), 0.0
        self._num_tokens, self.expected_s = num_tokens, self._pace.expected_s(num_tokens)
        self._last, self._longest = self._begun, 0.0
        self.at("reading the plan")

    def waited(self, since: float) -> None:
        """The wait for another stage, which began at `since`, is over."""
        self._last = time.monotonic()  # how long another one takes says nothing of this one
        self._waited += self._last - since

    def at(self, operation: str) -> None:
        """An operation begins."""
        now = time.monotonic()
        self._longest, self._last = max(self._longest, now - self._last), now
        self.operation = operation
        self.ticks += 1

    def done(self, step: int) -> None:
        """A plan is done."""
        self.finished = step
        self.at(IDLE)
        self.timeline.append((step, self._begun, self._last, self._waited))
        self.expected_s = 0.0
        self._pace.enter(self._num_tokens, self._longest)

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
