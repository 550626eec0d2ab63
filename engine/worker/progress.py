"""What a rank is doing right now, for those who watch whether it gets on."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ctypes import c_int64

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

    __slots__ = (
        "_begun",
        "_operation",
        "_tape",
        "_ticks",
        "finished",
        "gaps",
        "step",
        "timeline",
    )

    def __init__(self) -> None:
        self.step = self.finished = -1
        self._operation = IDLE
        self._ticks = 0
        self._tape: tuple[Sequence[str], c_int64] | None = None
        self.timeline: deque[tuple[int, float, float, float]] = deque(maxlen=KEPT)
        self.gaps: deque[float] = deque(maxlen=KEPT)
        self._begun: deque[tuple[int, float, float]] = deque(maxlen=KEPT)

    @property
    def operation(self) -> str:
        tape = self._tape
        if tape is None or not tape[1].value:
            return self._operation
        return tape[0][tape[1].value - 1]

    @property
    def ticks(self) -> int:
        tape = self._tape
        return self._ticks + (0 if tape is None else tape[1].value)

    @contextmanager
    def replaying(self, words: Sequence[str], mark: c_int64) -> Iterator[None]:
        """Inside, native code says what it does: it is at words[mark - 1], 0 before it begins."""
        mark.value = 0
        self._tape = words, mark
        try:
            yield
        finally:
            self._ticks += mark.value
            self._operation = self.operation
            self._tape = None

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
        self._operation = operation
        self._ticks += 1

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
