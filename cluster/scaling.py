"""How many replicas a model should have: a pure function of what its engines report.

    state, fleet, targets  ->  state, number of replicas, and a line in words when there is news

What a replica sustains is learned (`knee`). Until it is known, a queue, a full cache, a missed
latency target or streams that become more and more without more tokens ask for more.

up      at once where requests queue longer than `target_queue_s`, else when the need has held for
        CONFIRM_S; straight to what is needed; replicas that are starting count
down    to the most that was needed over `scale_down_after_s`, if it fits with a margin; every
        decision down that had to be taken back soon doubles that time
zero    after `scale_to_zero_after_s` without a request, where `min_replicas` is 0
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from . import knee
from .fleet import Fleet, Reading, State, Targets

CONFIRM_S = 1.0
HOLD_LINE_S = 30.0
MARGIN, RATE_MARGIN = 0.6, 0.85
"""How full the replicas that stay may be when others leave, in streams and in tokens a second. More
replicas have fewer streams in flight of the same load, but give as many tokens.
"""

MAX_PATIENCE = 8.0
RAISE = 1.5
"""How much more than what is starting must be needed to ask for still more."""

MAX_STEP = 2.0
"""How many times its size a fleet may grow to at once for a latency, which tells no number."""


class Decision(NamedTuple):
    """How many replicas there should be; `line` says why, None where there is nothing new."""

    state: State
    replicas: int
    line: str | None


class Need(NamedTuple):
    """Replicas that one signal asks for, in words; `sure` needs no time to be believed."""

    replicas: int
    why: str
    sure: bool = False


def decide(state: State, fleet: Fleet, targets: Targets) -> Decision:
    """The number of replicas from now on."""
    state = knee.learn(state, fleet)
    if state.target is not None and state.target != fleet.target:
        why = _woke(fleet) if state.target == 0 else "it was set anew"
        line = f"{_step(state.target, fleet.target)}: {why}"
        state = _moved(state, fleet.now, state.target, fleet.target)
        return _keep(replace(state, said="moved"), fleet, line)
    state = replace(state, target=fleet.target)
    if not fleet.readings:
        return _without_replicas(state, fleet, targets)
    needs = list(_needs(state, fleet.readings, targets))
    need = max(needs, default=Need(0, ""))
    if need.replicas > min(fleet.target, len(fleet.readings)):
        return _up(state, fleet, targets, need)
    return _down(replace(state, needed_since=None), fleet, targets)


def _needs(state: State, readings: Sequence[Reading], targets: Targets) -> Iterator[Need]:
    """What each signal that is past its target asks for."""
    num = len(readings)
    running, waiting = (sum(r.running for r in readings), sum(r.waiting for r in readings))
    queue_s = max(r.queue_s for r in readings)
    if queue_s > targets.target_queue_s:
        full = max(running / num, 1.0)
        yield Need(
            max(num + 1, math.ceil((running + waiting) / full)),
            f"requests have waited up to {queue_s:.1f} s for their first token "
            f"(target {targets.target_queue_s:g} s); {running:g} run, {waiting:g} wait",
            sure=True,
        )
    streams = knee.sustained(state, targets)
    if streams is not None and running + waiting > num * streams:
        yield Need(
            math.ceil((running + waiting) / streams),
            f"{running + waiting:g} streams in flight, and a replica sustains {streams:.3g} "
            f"({knee.why(state)})",
        )
    if (grown := knee.growth(state.recent, num)) is not None:
        yield Need(
            max(num + 1, math.ceil(num * min(grown.after / grown.before, MAX_STEP))),
            f"streams in flight grew from {grown.before:g} to {grown.after:g} in "
            f"{grown.seconds:.1f} s and {grown.tokens_per_s:.0f} tokens/s did not",
            sure=True,
        )
    kv = sum(r.kv_usage for r in readings)
    if kv > num * targets.target_kv_usage:
        yield Need(
            math.ceil(kv / targets.target_kv_usage),
            f"the KV cache is {kv / num:.0%} full (target {targets.target_kv_usage:.0%})",
        )
    for words, value, target in _latencies(readings, targets):
        if target is not None and value > target:
            step = min(value / target, MAX_STEP)
            why = f"{words} is {1e3 * value:.0f} ms (target {1e3 * target:.0f} ms)"
            yield Need(max(num + 1, math.ceil(num * step)), why)


def _latencies(
    readings: Sequence[Reading], targets: Targets
) -> Iterator[tuple[str, float, float | None]]:
    first = [r.ttft_s for r in readings if r.ttft_s > 0]
    each = [r.running / r.tokens_per_s for r in readings if r.running and r.tokens_per_s > 0]
    yield "time to first token", sum(first) / max(len(first), 1), targets.target_ttft_s
    yield "time per token", sum(each) / max(len(each), 1), targets.target_time_per_token_s


def _up(state: State, fleet: Fleet, targets: Targets, need: Need) -> Decision:
    wanted = min(need.replicas, targets.max_replicas)
    state = replace(state, quiet_since=None, idle_since=None)
    starting = fleet.target - len(fleet.readings)
    if starting > 0 and wanted < RAISE * fleet.target:
        line = f"stays at {fleet.target}: {need.why}, but {starting} of them have yet to start"
        return _hold(state, fleet, "starting", line)
    if wanted <= fleet.target:
        line = f"stays at {fleet.target}, the most allowed, though {need.why}"
        return _hold(state, fleet, "maximum", line)
    since = fleet.now if state.needed_since is None else state.needed_since
    state = replace(state, needed_since=since)
    if not need.sure and fleet.now - since < CONFIRM_S:
        return Decision(state, fleet.target, None)
    line = f"{_step(fleet.target, wanted)}: {need.why}"
    if wanted < need.replicas:
        line += f"; {need.replicas} would be needed, {wanted} are allowed"
    before = min(traffic.streams for traffic in state.recent) / len(fleet.readings)
    return _move(replace(state, proven=min(state.proven, before)), fleet, wanted, line)


def _down(state: State, fleet: Fleet, targets: Targets) -> Decision:
    busy = sum(r.running + r.waiting for r in fleet.readings)
    idle = busy == 0 and not fleet.pending
    since = None if not idle else fleet.now if state.idle_since is None else state.idle_since
    state = replace(state, idle_since=since)
    if fleet.target == 1 and targets.min_replicas == 0 and since is not None:
        if fleet.now - since >= targets.scale_to_zero_after_s:
            line = f"{_step(1, 0)}: no request for {fleet.now - since:.0f} s"
            return _move(state, fleet, 0, line)
        line = f"stays at 1: idle; goes to 0 after {targets.scale_to_zero_after_s:g} s of it"
        return _hold(state, fleet, "idle", line)
    enough = max(targets.min_replicas, 1, _enough(state, fleet, targets))
    words = _words(state, fleet.readings, targets)
    if enough >= fleet.target:
        state = replace(state, quiet_since=None)
        return _hold(state, fleet, "steady", f"stays at {fleet.target}: {words}")
    since = fleet.now if state.quiet_since is None else state.quiet_since
    floor = enough if state.quiet_since is None else max(state.quiet_floor, enough)
    state = replace(state, quiet_since=since, quiet_floor=floor)
    quiet_s = fleet.now - since
    after_s = targets.scale_down_after_s * state.patience
    if quiet_s < after_s:
        line = f"stays at {fleet.target}: {words}; {enough} would do, if it lasts {after_s:g} s"
        return _hold(state, fleet, "quiet", line)
    line = f"{_step(fleet.target, floor)}: for {quiet_s:.0f} s fewer would do; {words}"
    return _move(state, fleet, floor, line)


def _enough(state: State, fleet: Fleet, targets: Targets) -> int:
    """The fewest replicas that carry what runs now with a margin; all of them where one waits."""
    readings = fleet.readings
    if any(r.waiting for r in readings):
        return fleet.target
    for _, value, target in _latencies(readings, targets):
        if target is not None and value > MARGIN * target:
            return fleet.target
    streams = knee.sustained(state, targets) or state.proven
    running = sum(r.running for r in readings)
    if running and not streams:
        return fleet.target
    by_load = math.ceil(running / (MARGIN * streams)) if running else 0
    if rate := knee.rate(state) if knee.learned(state) else state.saturated:
        rate *= min(targets.target_load, 1.0) * RATE_MARGIN
        by_load = max(by_load, math.ceil(state.recent[-1].tokens_per_s / rate))
    kv = sum(r.kv_usage for r in readings)
    return max(by_load, math.ceil(kv / (MARGIN * targets.target_kv_usage)))


def _words(state: State, readings: Sequence[Reading], targets: Targets) -> str:
    """How it is, with numbers."""
    running = sum(r.running for r in readings)
    streams = knee.sustained(state, targets)
    carry = f"sustains {streams:.3g}" if streams else f"has carried {state.proven:g} so far"
    kv = sum(r.kv_usage for r in readings) / len(readings)
    queue_s = max(r.queue_s for r in readings)
    return (
        f"{running:g} streams on {len(readings)} ready, and each {carry}; "
        f"KV cache {kv:.0%}, longest wait {queue_s:.1f} s"
    )


def _without_replicas(state: State, fleet: Fleet, targets: Targets) -> Decision:
    state = replace(state, idle_since=None, quiet_since=None, needed_since=None)
    wanted = max(targets.min_replicas, 1 if fleet.pending else 0)
    if wanted > fleet.target:
        why = _woke(fleet) if fleet.pending else "the least allowed"
        return _move(state, fleet, wanted, f"{_step(fleet.target, wanted)}: {why}")
    if fleet.target == 0:
        return _hold(state, fleet, "zero", "stays at 0 until a request comes")
    line = f"stays at {fleet.target}: none of them reports yet"
    return _hold(state, fleet, "unheard", line)


def _move(state: State, fleet: Fleet, wanted: int, line: str) -> Decision:
    state = _moved(state, fleet.now, fleet.target, wanted)
    return Decision(replace(state, said="moved", said_at=fleet.now), wanted, line)


def _moved(state: State, now: float, before: int, after: int) -> State:
    """The state after a move, whoever decided it.

    A fleet that must grow soon after it shrank becomes more patient about shrinking.
    """
    state = replace(state, target=after, needed_since=None, quiet_since=None, idle_since=None)
    if after < before:
        return replace(state, went_down=now)
    soon = now - state.went_down < 120.0 * state.patience
    patience = min(2 * state.patience, MAX_PATIENCE) if soon and before else 1.0
    return replace(state, patience=patience)


def _hold(state: State, fleet: Fleet, kind: str, line: str) -> Decision:
    """Stay, and say so when the reason is another than last time."""
    wait_s = CONFIRM_S if state.said in ("moved", "unheard") else HOLD_LINE_S
    if kind == state.said or fleet.now - state.said_at < wait_s:
        return Decision(state, fleet.target, None)
    return _keep(replace(state, said=kind), fleet, line)


def _keep(state: State, fleet: Fleet, line: str) -> Decision:
    return Decision(replace(state, said_at=fleet.now), fleet.target, line)


def _woke(fleet: Fleet) -> str:
    return f"{fleet.pending:g} requests woke it" if fleet.pending > 1 else "a request woke it"


def _step(before: int, after: int) -> str:
    return f"{before} -> {after} replica{'s'[: after != 1]}"
