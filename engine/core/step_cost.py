"""What a step costs that decodes and nothing else: a fixed time, and one for each stream.

Learned from the steps that are done. Where streams take turns in several plans, as in a pipeline,
a round is the time in which each of them gets a token.
"""

from __future__ import annotations

from statistics import linear_regression
from typing import NamedTuple

from ..request import StepCost

SAMPLES = 3
"""Rounds at some number of streams before their pace is believed."""

MEMORY = 20
"""Rounds over which a pace is averaged."""

SPREAD = 4.0
"""How many times the fewest streams the most must be, to tell the two parts of a cost apart."""


class _Pace(NamedTuple):
    """Rounds with about as many streams. Rounds a second are averaged, not seconds, so that a
    single long one counts little.
    """

    samples: int = 0
    streams: float = 0.0
    rounds_per_s: float = 0.0


class StepCosts:
    """Paces by the power of two of the streams."""

    def __init__(self) -> None:
        self._paces: dict[int, _Pace] = {}

    def enter(self, num_streams: int, round_s: float) -> None:
        """A round of so many streams took so long."""
        size = num_streams.bit_length()
        known = self._paces.get(size, _Pace())
        samples = known.samples + 1
        weight = 1 / min(samples, MEMORY)
        self._paces[size] = _Pace(
            samples,
            known.streams + weight * (num_streams - known.streams),
            known.rounds_per_s + weight * (1 / max(round_s, 1e-9) - known.rounds_per_s),
        )

    def known(self) -> StepCost | None:
        """The cost, from any thread; None until seen at few streams and at many."""
        paces = [pace for pace in list(self._paces.values()) if pace.samples >= SAMPLES]
        streams = [pace.streams for pace in paces]
        if not paces or max(streams) < SPREAD * min(streams):
            return None
        line = linear_regression(streams, [1 / pace.rounds_per_s for pace in paces])
        return StepCost(max(line.intercept, 0.0), max(line.slope, 0.0))
