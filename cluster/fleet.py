"""A model's replicas as scaling sees them: what is wanted of them, what they report, and what is
remembered of that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """What is wanted of a fleet; None asks nothing. See `Autoscaling` of the configuration."""

    min_replicas: int = 1
    max_replicas: int = 1
    target_load: float = 1.0
    target_kv_usage: float = 0.85
    target_queue_s: float = 1.0
    target_ttft_s: float | None = None
    target_time_per_token_s: float | None = None
    scale_down_after_s: float = 60.0
    scale_to_zero_after_s: float = 300.0


class Reading(NamedTuple):
    """What a replica last reported.

    `queue_s`: how long the oldest has waited for its first token. `ttft_s`: mean of the first
    tokens of late, 0 where there were none. `steady`: it ran about as many streams all the time
    over which its tokens were counted. `fixed_s`, `stream_s`: what its steps cost, see `StepCost`;
    0 where that is not known yet.
    """

    running: float
    waiting: float = 0.0
    kv_usage: float = 0.0
    queue_s: float = 0.0
    ttft_s: float = 0.0
    tokens_per_s: float = 0.0
    steady: bool = True
    fixed_s: float = 0.0
    stream_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """A model's replicas at a time: how many were asked for, those that are ready and report, and
    requests that wait for a first one.
    """

    now: float
    target: int
    readings: tuple[Reading, ...]
    pending: float = 0.0


class Traffic(NamedTuple):
    """Streams in flight and tokens a second of all replicas at a time."""

    now: float
    streams: float
    tokens_per_s: float


class Pace(NamedTuple):
    """Tokens a second of one replica at some number of streams, and in how many reports."""

    tokens_per_s: float
    samples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What `scaling.decide` remembers from one call to the next.

    `paces` are by the power of two of the streams; `told` are the streams at the knee by what the
    engines' steps cost, by the last reports that showed one; `proven` are the most streams that a
    replica ran while none waited and they were neither more nor fewer for a while, `saturated` the
    most tokens a second that it gave while they became more.
    """

    paces: Mapping[int, Pace] = field(default_factory=dict)
    told: tuple[float, ...] = ()
    proven: float = 0.0
    saturated: float = 0.0
    recent: tuple[Traffic, ...] = ()
    target: int | None = None
    needed_since: float | None = None
    quiet_since: float | None = None
    quiet_floor: int = 0
    idle_since: float | None = None
    went_down: float = -math.inf
    patience: float = 1.0
    said: str = ""
    said_at: float = -math.inf
