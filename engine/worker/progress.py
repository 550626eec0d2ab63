"""What a rank is doing right now, for those who watch whether it gets on."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ctypes import c_int64
from dataclasses import dataclass

from torch import nn

from .pace import Pace

IDLE = "idle"
KEPT = 256
"""Steps that are remembered."""


@dataclass(slots=True)
class _Begun:
    """A plan under way."""

    num_tokens: int
    at_s: float
    waited_s: float = 0.0


class Progress:
    """Written by the rank's thread, read by any other.

    step       the plan under way, or the last one
    operation  what of it: a layer, sampling, waiting for another rank; `idle` between plans
    ticks      grows with every word of progress
    finished   the last plan that is done
    expected_s how long it should be silent at a stretch, as far as measured: see `Pace`
    timeline   the last steps: number, when it began and ended (s, monotonic), and how much of that
               went by waiting for another stage
    gaps       for how long the device did nothing for the model between one step's last draw and
               the next one's first layer (s): the host being late, and the copies of its rows;
               not between a step and one that was launched once it was done, for then there may
               have been nothing to do

    A device that computes by itself has a step under way when the next one begins.
    """

    __slots__ = (
        *("_begun", "_last", "_longest", "_operation", "_pace", "_tape", "_ticks"),
        *("expected_s", "finished", "gaps", "step", "timeline"),
    )

    def __init__(self) -> None:
        self.step = self.finished = -1
        self._operation = IDLE
        self._ticks = 0
        self._tape: tuple[Sequence[str], c_int64] | None = None
        self.timeline: deque[tuple[int, float, float, float]] = deque(maxlen=KEPT)
        self.gaps: deque[float] = deque(maxlen=KEPT)
        self.expected_s = 0.0
        self._pace = Pace()
        self._begun: deque[_Begun] = deque(maxlen=KEPT)
        self._last = self._longest = 0.0

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
            self._last = time.monotonic()  # native code spoke meanwhile, at every mark
            self._ticks += mark.value
            self._operation = self.operation
            self._tape = None

    @property
    def is_under_way(self) -> bool:
        """Whether a plan has begun and is not done."""
        return bool(self._begun)

    def begin(self, step: int, num_tokens: int) -> None:
        """A plan of so many tokens begins."""
        self.step, self._last = step, time.monotonic()
        if not self._begun:
            self._longest = 0.0
        self._begun.append(_Begun(num_tokens, self._last))
        self.expected_s = max(self.expected_s, self._pace.expected_s(num_tokens))
        self.at("reading the plan")

    def waited(self, since: float) -> None:
        """The wait for another stage, which began at `since`, is over."""
        self._last = time.monotonic()  # how long another one takes says nothing of this one
        self._begun[-1].waited_s += self._last - since

    def at(self, operation: str) -> None:
        """An operation begins."""
        now = time.monotonic()
        self._longest, self._last = max(self._longest, now - self._last), now
        self._operation = operation
        self._ticks += 1

    def done(self, step: int) -> None:
        """A plan is done, the oldest that is under way."""
        done = self._begun.popleft()
        self.finished = step
        self.at("computing" if self._begun else IDLE)
        self.timeline.append((step, done.at_s, self._last, done.waited_s))
        self._pace.enter(done.num_tokens, self._longest)
        self._longest = 0.0
        left = (self._pace.expected_s(begun.num_tokens) for begun in self._begun)
        self.expected_s = max(left, default=0.0)

    def forget(self) -> None:
        """What was done so far says nothing of what comes: as at the start."""
        assert not self._begun, "a plan is under way"
        self.step = self.finished = -1
        self.timeline.clear()
        self.gaps.clear()
        self.expected_s, self._pace = 0.0, Pace()

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
