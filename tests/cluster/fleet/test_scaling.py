"""The scaling policy on a simulated fleet: engines have a knee, replicas take time to start."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from shoal.cluster.fleet import Fleet, Pace, Reading, State, Targets
from shoal.cluster.knee import CROWD
from shoal.cluster.scaling import decide
from shoal.engine.request import StepCost

EVERY_S = 0.5
START_S = 5.0


@dataclass
class Engine:
    """Runs up to `slots` streams; gives each `pace` tokens a second, all of them `peak` at most.

    Or its steps have a cost, and it tells of it once it has run a few streams, as an engine does.
    """

    ready_at: float
    pace: float = 50.0
    peak: float = 800.0
    slots: int = 64
    cost: StepCost | None = None
    streams: list[list[float]] = field(default_factory=list)  # [arrived at, tokens to come]
    rate: float = 0.0
    before: int = 0

    def run(self, seconds: float) -> int:
        running = self.streams[: self.slots]
        each = min(self.pace, self.peak / max(len(running), 1))
        if self.cost is not None:
            each = 1 / (self.cost.fixed_s + self.cost.stream_s * len(running))
        done = 0
        for stream in running:
            stream[1] -= each * seconds
            done += stream[1] <= 0
        self.rate = each * len(running)
        self.streams = [s for s in self.streams if s[1] > 0]
        return done

    def reading(self, now: float) -> Reading:
        running, waiting = self.streams[: self.slots], self.streams[self.slots :]
        told = self.cost if self.cost is not None and len(running) > 1 else StepCost(0.0, 0.0)
        return Reading(
            running=len(running),
            waiting=len(waiting),
            kv_usage=len(running) / 200,
            queue_s=now - waiting[0][0] if waiting else 0.0,
            tokens_per_s=self.rate,
            steady=abs(len(running) - self.before) <= 0.25 * len(running),
            **told._asdict(),
        )


class Simulation:
    """A load in requests a second, each of 100 tokens, over a fleet that follows the policy."""

    def __init__(self, targets: Targets, seed: int = 0, **engine: Any) -> None:
        self.targets, self.engine = targets, engine
        self.now, self.target, self.due = 0.0, max(targets.min_replicas, 1), 0.0
        self.engines = [Engine(ready_at=0.0, **engine) for _ in range(self.target)]
        self.state = State()
        self.arrived = self.finished = 0
        self.moves: list[tuple[float, int, int]] = []
        self.lines: list[tuple[float, str]] = []
        self.random = random.Random(seed)

    def run(self, seconds: float, load: Callable[[float], float]) -> Simulation:
        began = self.now
        while self.now < began + seconds:
            self.now += 0.1
            self.due += 0.1 * load(self.now - began)
            while self.due >= 1:
                self.due -= 1
                self.arrive()
            self.finished += sum(e.run(0.1) for e in self.ready())
            if round(self.now * 10) % round(EVERY_S * 10) == 0:
                self.decide()
        return self

    def closed(self, seconds: float, num: int) -> Simulation:
        """So many clients that each ask again as soon as they are answered."""
        ends = self.now + seconds
        while self.now < ends:
            self.arrive(num - sum(len(engine.streams) for engine in self.ready()))
            self.run(0.1, constant(0))
        return self

    def arrive(self, num: int = 1) -> None:
        for _ in range(num):
            engine = min(self.ready(), key=lambda e: len(e.streams))
            engine.streams.append([self.now, 100.0])
            self.arrived += 1

    def ready(self) -> list[Engine]:
        return [e for e in self.engines if e.ready_at <= self.now]

    def decide(self) -> None:
        readings = tuple(e.reading(self.now) for e in self.ready())
        for engine in self.ready():
            engine.before = min(len(engine.streams), engine.slots)
        fleet = Fleet(now=self.now, target=self.target, readings=readings)
        self.state, wanted, line = decide(self.state, fleet, self.targets)
        if line:
            self.lines.append((self.now, line))
        if wanted == self.target:
            return
        assert line, "every move is told"
        self.moves.append((self.now, self.target, wanted))
        new = [Engine(self.now + START_S, **self.engine) for _ in range(wanted - self.target)]
        self.engines = [*self.engines, *new]
        leaving = self.engines[wanted:]
        self.engines, self.target = self.engines[:wanted], wanted
        for engine in leaving:  # a drain moves its streams
            for stream in engine.streams:
                min(self.ready(), key=lambda e: len(e.streams)).streams.append(stream)


def told(simulation: Simulation, words: str) -> bool:
    return any(words in line for _, line in simulation.lines)


def constant(requests_per_s: float) -> Callable[[float], float]:
    return lambda _: requests_per_s


FLEET = Targets(max_replicas=4)


def test_a_steady_load_that_one_replica_carries_moves_nothing_and_is_told_once() -> None:
    simulation = Simulation(FLEET).run(600, constant(5))
    assert not simulation.moves
    assert len(simulation.lines) == 1 and simulation.lines[0][1].startswith("stays at 1: ")


def test_a_step_that_one_replica_cannot_carry_is_answered_within_3_s_of_its_signs() -> None:
    simulation = Simulation(FLEET).run(60, constant(5))
    stepped = simulation.now
    while len(simulation.ready()[0].streams) <= 16:
        simulation.run(0.1, constant(20))
    passed = simulation.now
    simulation.run(120, constant(20))
    at, before, _ = simulation.moves[0]
    assert stepped < at <= passed + 3.0 and before == 1
    assert simulation.target >= 3, simulation.lines
    assert simulation.arrived - simulation.finished < 100
    line = next(line for _, line in simulation.lines if "->" in line)
    simulation.run(300, constant(2)).run(30, constant(20))
    assert told(simulation, "streams in flight, and a replica sustains 24 (it gives 800 tokens/s")
    assert line.startswith("1 -> ") and "streams in flight grew from" in line, line


COST = StepCost(0.001, 0.00017)
"""About the bundled model on two cores: a knee at 17 streams."""


def test_clients_at_once_that_one_replica_cannot_carry_are_answered_within_3_s() -> None:
    """Closed loop from the first second on: nothing waits, nothing grows, no pace is known."""
    simulation = Simulation(FLEET, cost=COST).closed(300, 40)
    assert [move[1:] for move in simulation.moves] == [(1, 3)]
    assert simulation.moves[0][0] <= 3.0
    assert told(simulation, "1 -> 3 replicas: 40 streams in flight, and a replica sustains 16.7 (")
    assert told(simulation, "by what its steps cost, twice as many would hardly bring more tokens")


def test_clients_at_once_that_one_replica_carries_move_nothing() -> None:
    for num in (1, 4, 8, 16):
        assert not Simulation(FLEET, cost=COST).closed(120, num).moves
    dear = Simulation(FLEET, cost=StepCost(0.0001, 0.001))  # no step gains from company
    assert not dear.closed(120, CROWD).moves


def test_fewer_clients_need_fewer_replicas_without_turning_round() -> None:
    simulation = Simulation(FLEET, cost=COST).closed(60, 60).closed(300, 10).closed(60, 60)
    assert [move[1:] for move in simulation.moves] == [(1, 4), (4, 1), (1, 4)]


def test_a_burst_beyond_the_slots_is_answered_within_3_s() -> None:
    simulation = Simulation(FLEET)
    simulation.run(10, constant(1))
    began = simulation.now
    simulation.arrive(400)
    simulation.run(3.0, constant(1))
    assert simulation.moves[0][0] <= began + 3.0
    assert simulation.moves[0][1:] == (1, 4)
    assert any("have waited up to" in line for _, line in simulation.lines)


def test_a_ramp_up_and_down_goes_there_and_back_without_turning_round() -> None:
    simulation = Simulation(FLEET)
    simulation.run(300, lambda t: 4 + 20 * t / 300).run(300, lambda t: 24 - 20 * t / 300)
    simulation.run(200, constant(4))
    steps = [after - before for _, before, after in simulation.moves]
    turns = sum(a * b < 0 for a, b in pairwise(steps))
    assert turns <= 1, simulation.moves
    assert simulation.target == 1 and simulation.finished > 0.98 * simulation.arrived


def test_a_steady_load_of_any_size_settles() -> None:
    for load in (3, 7, 8, 9, 12, 15, 16, 17, 20, 24, 28):
        simulation = Simulation(FLEET).run(300, constant(load))
        settled = len(simulation.moves)
        simulation.run(900, constant(load))
        assert len(simulation.moves) <= settled + 2, (load, simulation.moves)
        assert simulation.target * 8 >= min(load, 32) * 0.99, (load, simulation.moves)


def test_a_noisy_load_does_not_flap() -> None:
    simulation = Simulation(FLEET, seed=3)
    simulation.run(900, lambda _: simulation.random.expovariate(1 / 12.0))
    steps = [after - before for _, before, after in simulation.moves]
    assert sum(a * b < 0 for a, b in pairwise(steps)) <= 2, simulation.moves
    assert simulation.target in (2, 3, 4)


def test_down_comes_only_after_the_quiet_time() -> None:
    simulation = Simulation(FLEET).run(60, constant(20))
    assert simulation.target > 1
    began, moved = simulation.now, len(simulation.moves)
    simulation.run(200, constant(2))
    assert simulation.target == 1
    for at, _, after in simulation.moves[moved:]:  # 3 may be too many for 20 a second
        assert after >= 3 or at >= began + FLEET.scale_down_after_s


def test_zero_only_where_it_is_allowed_and_after_its_time() -> None:
    targets = Targets(min_replicas=0, max_replicas=2, scale_to_zero_after_s=20)
    simulation = Simulation(targets).run(10, constant(1))
    simulation.run(60, constant(0))
    assert simulation.moves[-1][1:] == (1, 0) and simulation.moves[-1][0] >= 30
    assert "no request for" in simulation.lines[-2][1]
    assert simulation.lines[-1][1] == "stays at 0 until a request comes"
    assert Simulation(FLEET).run(900, constant(0)).target == 1


def test_a_waiting_request_wakes_a_sleeping_fleet() -> None:
    targets = Targets(min_replicas=0, max_replicas=2)
    asleep = Fleet(now=50.0, target=0, readings=())
    state, replicas, _ = decide(State(), asleep, targets)
    assert replicas == 0
    woken = Fleet(now=51.0, target=0, readings=(), pending=2)
    assert decide(state, woken, targets)[1:] == (1, "0 -> 1 replica: 2 requests woke it")
    by_serve = Fleet(now=51.0, target=1, readings=(), pending=2)
    assert decide(state, by_serve, targets)[1:] == (1, "0 -> 1 replica: 2 requests woke it")


def answer(reading: Reading, targets: Targets, num: int = 1, target: int | None = None) -> str:
    """The first move's line for replicas that go on reporting this."""
    state = State()
    for now in range(100, 110):
        fleet = Fleet(now=now / 2, target=target or num, readings=(reading,) * num)
        state, wanted, line = decide(state, fleet, targets)
        if wanted != fleet.target:
            return f"{now - 100} {line}"
    return ""


def test_each_target_leads() -> None:
    kv = answer(Reading(running=5, kv_usage=0.95), FLEET)
    assert kv == "2 1 -> 2 replicas: the KV cache is 95% full (target 85%)"
    slow = Reading(running=10, tokens_per_s=100, ttft_s=0.5)
    assert answer(slow, FLEET) == ""
    first = answer(slow, Targets(max_replicas=4, target_ttft_s=0.2))
    assert first == "2 1 -> 2 replicas: time to first token is 500 ms (target 200 ms)"
    each = answer(slow, Targets(max_replicas=4, target_time_per_token_s=0.08), num=2)
    assert each == "2 2 -> 3 replicas: time per token is 100 ms (target 80 ms)"
    queue = answer(Reading(running=8, waiting=16, queue_s=1.5), FLEET)
    assert queue.startswith("0 1 -> 3 replicas: requests have waited up to 1.5 s")
    most = Targets(max_replicas=2)
    beyond = answer(Reading(running=8, waiting=16, queue_s=1.5), most)
    assert beyond.endswith("3 would be needed, 2 are allowed")


def test_replicas_that_are_starting_are_counted_and_the_bound_is_told() -> None:
    full = Reading(running=8, waiting=8, queue_s=1.5)
    assert answer(full, FLEET, num=1, target=2) == ""
    state, wanted, line = decide(State(), Fleet(now=1, target=2, readings=(full,)), FLEET)
    assert wanted == 2 and line is not None and line.endswith("but 1 of them have yet to start")
    top = Fleet(now=1, target=4, readings=(full,) * 4)
    state, wanted, line = decide(State(), top, FLEET)
    assert wanted == 4 and line is not None and line.startswith("stays at 4, the most allowed")
    later = Fleet(now=60, target=4, readings=(full,) * 4)
    assert decide(state, later, FLEET).line is None


def test_a_fleet_that_has_just_begun_to_report_is_told_of_at_once() -> None:
    state, _, line = decide(State(), Fleet(now=1, target=1, readings=()), FLEET)
    assert line == "stays at 1: none of them reports yet"
    later = Fleet(now=3, target=1, readings=(Reading(running=2, tokens_per_s=100),))
    state, _, line = decide(state, later, FLEET)
    assert line is not None and line.startswith("stays at 1: 2 streams on 1 ready")


def test_a_move_down_that_was_wrong_makes_the_next_one_slower() -> None:
    targets = Targets(max_replicas=4, scale_down_after_s=10)
    simulation = Simulation(targets).run(60, constant(20))
    for _ in range(6):
        simulation.run(20, constant(1)).run(20, constant(20))
    downs = [at for at, before, after in simulation.moves if after < before]
    assert len(downs) < 6, "the fleet followed every wave"


def test_fewer_streams_of_the_same_load_do_not_pass_for_less_of_it() -> None:
    """Three replicas give what took two of them at their knee, with a stream here and there."""
    state = State(paces={3: Pace(700, 9), 4: Pace(790, 9), 5: Pace(800, 9)}, target=3)
    target = 3
    for now in range(400):
        readings = (Reading(running=12 // target, tokens_per_s=1300 / target),) * target
        fleet = Fleet(now=now / 2, target=target, readings=readings)
        state, target, _ = decide(state, fleet, FLEET)
    assert target == 2


def test_a_backlog_that_grows_is_no_proof_of_what_a_replica_carries() -> None:
    targets, state = Targets(max_replicas=1), State()
    for now in range(20):
        reading = Reading(running=10 + 2 * now, tokens_per_s=400)
        state = decide(state, Fleet(now=now / 2, target=1, readings=(reading,)), targets).state
    assert not state.proven
    for now in range(20, 50):
        reading = Reading(running=130, tokens_per_s=400)
        state = decide(state, Fleet(now=now / 2, target=1, readings=(reading,)), targets).state
    assert state.proven == 130
