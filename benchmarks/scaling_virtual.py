"""The trace of `scaling.py` in virtual time, the same everywhere: policies alone are real.

A replica computes steps of FIXED_S and a STREAM_S for each of its streams, each of which gets a
token a step, and it tells of that once it has run a few; a request waits for the step under way and
for its first one. New replicas take START_S, each is a machine of its own, and a request goes to
the one with the fewest streams.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest import mock

from shoal.cluster import fleet, scaling
from shoal.engine.core.step_cost import SPREAD

FIXED_S, STREAM_S = 0.004, 0.0012
"""About the bundled model on one core: 190 tokens/s of one stream, 800 of many."""

START_S = 8.0
TICK_S, REPORT_S = 0.05, 0.5
SLOTS = 256


@dataclass(eq=False)
class Stream:
    """A request that came `at`; `left` are tokens to come."""

    at: float
    left: float
    first_s: float | None = None


@dataclass(eq=False)
class Replica:
    """One of the fleet, from `ready_at` on."""

    ready_at: float
    streams: list[Stream] = field(default_factory=list)
    tokens: float = 0.0
    before: int = 0
    most: int = 1

    def run(self, now: float) -> None:
        running = self.streams[:SLOTS]
        self.most = max(self.most, len(running))
        step_s = FIXED_S + STREAM_S * len(running)
        for stream in running:
            if stream.first_s is None:
                stream.first_s = now - stream.at + 1.5 * step_s
            done = min(TICK_S / step_s, stream.left)
            stream.left -= done
            self.tokens += done
        self.streams = [stream for stream in self.streams if stream.left > 0]

    def reading(self, now: float) -> fleet.Reading:
        running, waiting = self.streams[:SLOTS], self.streams[SLOTS:]
        tokens, self.tokens = self.tokens, 0.0
        before, self.before = self.before, len(running)
        cost = (FIXED_S, STREAM_S) if self.most >= SPREAD else (0.0, 0.0)
        return fleet.Reading(
            running=len(running),
            waiting=len(waiting),
            queue_s=now - waiting[0].at if waiting else 0.0,
            tokens_per_s=tokens / REPORT_S,
            steady=abs(len(running) - before) <= 0.25 * len(running),
            fixed_s=cost[0],
            stream_s=cost[1],
        )


Policy = Callable[[float, int, list[Replica]], tuple[int, str | None]]


def shoals(settings: dict[str, Any]) -> Policy:
    """`scaling.decide`."""
    state, targets = fleet.State(), fleet.Targets(**settings)

    def policy(now: float, target: int, ready: list[Replica]) -> tuple[int, str | None]:
        nonlocal state
        readings = tuple(replica.reading(now) for replica in ready)
        seen = fleet.Fleet(now=now, target=target, readings=readings)
        state, wanted, line = scaling.decide(state, seen, targets)
        return wanted, line

    return policy


def serves(settings: dict[str, Any]) -> Policy:
    """Ray Serve's own, with its delays, on the requests of the look-back period."""
    from ray.serve import autoscaling_policy
    from ray.serve.config import AutoscalingConfig

    config = AutoscalingConfig(**settings)
    decide = autoscaling_policy._apply_autoscaling_config(
        autoscaling_policy.replica_queue_length_autoscaling_policy
    )
    held: list[tuple[float, int]] = []
    kept: dict[str, Any] = {}

    def policy(now: float, target: int, ready: list[Replica]) -> tuple[int, str | None]:
        nonlocal kept
        held.append((now, sum(len(replica.streams) for replica in ready)))
        late = [num for at, num in held if now - at <= config.look_back_period_s]
        context = SimpleNamespace(
            current_num_replicas=len(ready),
            target_num_replicas=target,
            total_num_requests=sum(late) / len(late),
            config=config,
            policy_state=kept,
        )
        with mock.patch.object(autoscaling_policy.time, "time", lambda: now):
            wanted, kept = decide(context)
        wanted = max(config.min_replicas, min(config.max_replicas, wanted))
        line = f"{target} -> {wanted}: {context.total_num_requests:.0f} requests on average"
        return wanted, line if wanted != target else None

    return policy


def measured(policy: Policy, trace: Any, tokens: int) -> dict[str, Any]:
    """Replicas over time, decisions and first tokens of the trace under a policy."""
    fleet, target, now, due = [Replica(0.0)], 1, 0.0, 0.0
    asked: list[tuple[str, Stream]] = []
    replicas: list[tuple[float, int, int]] = []
    told: list[tuple[float, str]] = []
    for phase, rate, seconds in trace:
        for _ in range(round(seconds / TICK_S)):
            now += TICK_S
            due += rate * TICK_S
            ready = [replica for replica in fleet if replica.ready_at <= now]
            while due >= 1:
                due -= 1
                asked.append((phase, Stream(now, tokens)))
                min(ready, key=lambda r: len(r.streams)).streams.append(asked[-1][1])
            for replica in ready:
                replica.run(now)
            if round(now / TICK_S) % round(REPORT_S / TICK_S):
                continue
            wanted, line = policy(now, target, ready)
            if line:
                told.append((round(now, 1), line))
            fleet += [Replica(now + START_S) for _ in range(wanted - target)]
            fleet, leaving, target = fleet[:wanted], fleet[wanted:], wanted
            for stream in (stream for replica in leaving for stream in replica.streams):
                min(fleet, key=lambda r: (r.ready_at > now, len(r.streams))).streams.append(stream)
            replicas.append((round(now, 2), sum(r.ready_at <= now for r in fleet), target))
    first = [(phase, round(s.at, 2), s.first_s) for phase, s in asked]
    return {"replicas": replicas, "decisions": told, "first": first}
