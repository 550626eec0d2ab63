"""What one replica sustains, by what a fleet reports.

learned   its mean tokens a second are kept by how many streams it runs, in powers of two; once
          twice the streams brought hardly more tokens, its knee is where it gave nearly the most
told      before that, from the first second on: its engine knows what a step costs by itself and
          what each stream adds, and so how many streams twice of which would bring hardly more
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from .fleet import Fleet, Pace, State, Targets, Traffic

LONG_S, FLAT = 6.0, 1.15
"""Streams count as carried where over the second half of LONG_S they were no more and no fewer than
by FLAT: a replica that falls behind may hold many for a while."""

GAIN = 1.15
"""What twice the streams must bring in tokens a second to count as not saturated."""

RISE = (2 - GAIN) / (2 * (GAIN - 1))
"""How many times the fixed part of a step the streams' part is where twice the streams bring GAIN
times the tokens."""

NEARLY = 0.9
SAMPLES = 4
MEMORY = 20
"""Reports over which a pace is averaged."""

TOLD = 6
"""Reports of whose knees the middle one counts: a machine is busy with other things at times."""

WINDOW_S = 1.5
CROWD = 8
GROWTH = 1.35
"""Fewer streams than CROWD a replica tell of no knee: it idles between them. GROWTH times as many
within WINDOW_S with no more tokens tell without one that the replicas are past theirs."""


def sustained(state: State, targets: Targets) -> float | None:
    """The streams at which one replica is at its knee, times `target_load`; None until known."""
    told = statistics.median(state.told) if state.told else 0.0
    return (learned(state) or told) * targets.target_load or None


def learned(state: State) -> float | None:
    """The streams at the knee by tokens a second; None until learned."""
    known = {b: p.tokens_per_s for b, p in state.paces.items() if p.samples >= SAMPLES}
    if len(known) < 2:
        return None
    *_, below, top = sorted(known)
    if 2**top < CROWD or known[top] > GAIN * known[below]:
        return None
    most = max(known.values())
    knee = min(bucket for bucket, rate in known.items() if rate >= NEARLY * most)
    return 1.5 * 2.0**knee


def rate(state: State) -> float:
    """The most tokens a second that one replica is known to give; 0 until that is learned."""
    return max((p.tokens_per_s for p in state.paces.values() if p.samples >= SAMPLES), default=0.0)


def why(state: State) -> str:
    """What tells how many streams a replica sustains, in words."""
    if learned(state) is not None:
        return f"it gives {rate(state):.0f} tokens/s, no more with more streams"
    return "by what its steps cost, twice as many would hardly bring more tokens"


class Growth(NamedTuple):
    """Streams in flight that became more within some seconds, with tokens a second that did not."""

    before: float
    after: float
    seconds: float
    tokens_per_s: float


def growth(recent: Sequence[Traffic], num: int) -> Growth | None:
    """How the streams of `num` replicas grew all through the last WINDOW_S while the tokens did
    not; None where they did not so.
    """
    recent = _within(WINDOW_S, recent, recent[-1].now)
    first, last = recent[0], recent[-1]
    middle = recent[len(recent) // 2]
    half = math.sqrt(GROWTH)
    if (
        last.now - first.now > WINDOW_S - 0.5
        and first.streams >= CROWD * num
        and middle.streams >= half * first.streams
        and last.streams >= half * middle.streams
        and last.tokens_per_s < GAIN * first.tokens_per_s
    ):
        return Growth(first.streams, last.streams, last.now - first.now, last.tokens_per_s)
    return None


def learn(state: State, fleet: Fleet) -> State:
    """The state with what these reports teach."""
    paces, proven = dict(state.paces), state.proven
    for reading in fleet.readings:
        if reading.steady and reading.running >= 1 and reading.tokens_per_s > 0:
            bucket = int(math.log2(reading.running))
            known = paces.get(bucket, Pace(0.0, 0))
            weight = 1 / min(known.samples + 1, MEMORY)
            mean = known.tokens_per_s + weight * (reading.tokens_per_s - known.tokens_per_s)
            paces[bucket] = Pace(mean, known.samples + 1)
    traffic = Traffic(
        fleet.now,
        sum(r.running + r.waiting for r in fleet.readings),
        sum(r.tokens_per_s for r in fleet.readings),
    )
    recent = (*_within(LONG_S, state.recent, fleet.now), traffic)
    if _flat(recent):
        carried = [r.running for r in fleet.readings if not r.waiting]
        proven = max(proven, *carried, 0.0)
    saturated, num = state.saturated, len(fleet.readings)
    if num and growth(recent, num) is not None:
        saturated = max(saturated, traffic.tokens_per_s / num)
    return replace(
        state,
        paces=paces,
        told=(*state.told, *_told(fleet))[-TOLD:],
        proven=proven,
        saturated=saturated,
        recent=recent,
    )


def _told(fleet: Fleet) -> list[float]:
    """The streams at a middling replica's knee by what its steps cost; [] where that shows none."""
    costs = [(r.fixed_s, r.stream_s) for r in fleet.readings if r.fixed_s or r.stream_s]
    knees = [RISE * fixed_s / stream_s if stream_s else math.inf for fixed_s, stream_s in costs]
    middle = [statistics.median_high(knees)] if knees else []
    return [max(knee, CROWD) for knee in middle if knee < math.inf]


def _flat(recent: Sequence[Traffic]) -> bool:
    """Whether there were about as many streams late as early."""
    half = len(recent) // 2
    if recent[-1].now - recent[0].now < LONG_S - 1.0:
        return False
    early = sum(traffic.streams for traffic in recent[:half]) / half
    late = sum(traffic.streams for traffic in recent[-half:]) / half
    return late <= FLAT * early + 0.5 and early <= FLAT * late + 0.5


def _within(seconds: float, recent: Sequence[Traffic], now: float) -> list[Traffic]:
    return [traffic for traffic in recent if now - traffic.now <= seconds + 0.05]
