"""The scheduler and the KV manager under random schedules: text, books and progress."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

import pytest
from shoal.engine.config import EngineConfig
from shoal.engine.core.scheduler import Scheduler
from shoal.engine.executor import Capacity
from shoal.engine.features.beams import search_of
from shoal.engine.loop import Loop
from shoal.engine.request import FinishReason, Request, SamplingParams
from shoal.engine.sequence import Sequence

from .fake import FakeExecutor, beams, capacity, reference

SCHEDULES = 480
WORDS = 6


@dataclass
class World:
    """One engine over the fake model, and all that its sequences have said."""

    config: EngineConfig
    capacity: Capacity
    depth: int = 1
    resident: bool = True
    requests: dict[str, Request] = field(default_factory=dict)
    texts: dict[tuple[str, int], list[int]] = field(default_factory=dict)
    ends: dict[tuple[str, int], FinishReason] = field(default_factory=dict)
    aborted: set[tuple[str, int]] = field(default_factory=set)
    checked: bool = True

    def __post_init__(self) -> None:
        self.capacity = replace(self.capacity, step_tokens=self.config.step_tokens(512))
        self.scheduler = Scheduler(
            self.config,
            self.capacity,
            depth=self.depth,
            resident=self.resident,
            lockstep_of=search_of(self.capacity.eos_token_ids),
        )
        self.executor = FakeExecutor(self.capacity, depth=self.depth, resident=self.resident)
        self.loop = Loop(self.scheduler, self.executor)

    def add(self, request: Request) -> None:
        self.requests[request.id] = request
        self.loop.add(request)

    def abort(self, name: str, sibling: int | None = None) -> None:
        request = self.requests[name]
        every = range(request.sibling, request.sibling + request.params.n)
        for i in every if sibling is None else [sibling]:
            if (name, i) not in self.ends:
                self.aborted.add((name, i))
        self.loop.abort(name, sibling)

    def step(self) -> None:
        for update in self.loop.step():
            key = (update.id, update.sibling)
            assert key not in self.aborted, "an update after an abort"
            assert key not in self.ends, "an update after the end"
            self.texts.setdefault(key, []).extend(update.tokens)
            if update.finish is not None:
                self.ends[key] = update.finish
        if self.checked:
            self.scheduler.verify()
            everyone = [s for family in self.scheduler.roster.live.values() for s in family]
            behind = sum(s.behind if s.leader is None else 1 for s in everyone)
            assert self.scheduler.num_behind == behind

    def finish(self, most: int = 20_000) -> None:
        for _ in range(most):
            if not self.loop.unfinished:
                break
            self.step()
        assert not self.loop.unfinished, "no progress"
        self.scheduler.verify()

    def check(self) -> None:
        windows = self.executor.windows
        for name, request in self.requests.items():
            answers = {}
            if request.params.use_beam_search:
                answers = dict(enumerate(beams(request, windows, self.capacity.max_model_len)))
            for i in range(request.sibling, request.sibling + request.params.n):
                if request.params.use_beam_search:
                    want = answers[i - request.sibling]
                else:
                    want = reference(request, i, windows, self.capacity.max_model_len)
                said = [*request.emitted, *self.texts.get((name, i), [])]
                if (name, i) in self.aborted or self.ends.get((name, i)) is FinishReason.ERROR:
                    assert want[: len(said)] == said
                else:
                    assert said == want, (name, i)


def prompt(rng: random.Random, longest: int) -> tuple[int, ...]:
    """Few words, and beginnings that are often shared."""
    shared = [[(7 * k + i) % WORDS + 1 for i in range(40)] for k in range(3)]
    tail = [rng.randint(1, WORDS) for _ in range(rng.choice((0, 0, 1, 2, 5, 9)))]
    head = rng.choice(shared)[: rng.choice((1, 3, 4, 8, 13, 16, 24))]
    return tuple((head + tail)[: max(1, longest)])


def some_request(rng: random.Random, name: str, max_len: int) -> Request:
    if rng.random() < 0.3:
        return some_beams(rng, name, max_len)
    n = rng.choice((1, 1, 1, 2, 3))
    params = SamplingParams(
        n=n,
        max_tokens=rng.choice((None, 0, 1, 2, 5, 17, 30)),
        ignore_eos=rng.random() < 0.5,
        stop_token_ids=(3,) if rng.random() < 0.1 else (),
        seed=rng.randint(0, 3),
    )
    ids = prompt(rng, max_len - 2)
    emitted: tuple[int, ...] = ()
    if n == 1 and params.max_tokens not in (0, 1, 2) and rng.random() < 0.2:
        emitted = tuple(rng.randint(4, WORDS) for _ in range(3))[: max_len - 1 - len(ids)]
    return Request(
        id=name,
        prompt=ids,
        params=params,
        emitted=emitted,
        sibling=rng.choice((0, 0, 2)),
        cache_salt=rng.choice(("", "", "salt")),
        adapter=rng.choice((None, None, "lora")),
        priority=rng.randint(0, 2),
    )


def some_beams(rng: random.Random, name: str, max_len: int) -> Request:
    width = rng.choice((2, 2, 3, 5))
    params = SamplingParams(
        n=rng.randint(1, width),
        best_of=width,
        use_beam_search=True,
        temperature=0,
        length_penalty=rng.choice((0.0, 1.0, 1.0, 2.0, -0.5)),
        early_stopping=rng.choice((False, True, "never")),
        max_tokens=rng.choice((None, 1, 2, 5, 12)),
        ignore_eos=rng.random() < 0.3,
        stop_token_ids=(3,) if rng.random() < 0.2 else (),
    )
    return Request(
        id=name,
        prompt=prompt(rng, max_len - 2),
        params=params,
        sibling=rng.choice((0, 0, 2)),
        priority=rng.randint(0, 2),
    )


def some_world(rng: random.Random) -> World:
    size = rng.choice((1, 2, 4, 8))
    max_len = rng.choice((16, 40, 64))
    fits = -(-max_len // size)
    slots = rng.choice((1, 2, 4, 8))
    chunked = rng.random() < 0.8
    budget = rng.choice((slots, slots + 3, 16, 64)) if chunked else max_len + slots
    return World(
        EngineConfig(
            max_num_seqs=slots,
            max_num_batched_tokens=max(slots, budget),
            enable_prefix_caching=rng.random() < 0.7,
            enable_chunked_prefill=chunked,
            scheduling_policy=rng.choice(("fcfs", "priority")),
        ),
        capacity(
            num_blocks=1 + fits + rng.choice((0, 1, fits, 4 * fits, 200)),
            block_size=size,
            max_model_len=max_len,
            windows=rng.choice(((None,), (None, 4), (7,), (None, 3, 9))),
            prompt_tokens=rng.choice((None, 1, 5, 16)) if chunked else None,
        ),
        depth=rng.choice((1, 2, 3)),
        resident=rng.random() < 0.5,
    )


def run_schedule(seed: int) -> World:
    """Random arrivals, aborts and failures over a random engine."""
    rng = random.Random(seed)
    world = some_world(rng)
    for number in range(rng.choice((3, 8, 14))):
        world.add(some_request(rng, f"r{number}", world.capacity.max_model_len))
        for _ in range(rng.choice((0, 0, 1, 2, 9))):
            if rng.random() < 0.08:
                name = rng.choice(list(world.requests))
                request = world.requests[name]
                every = range(request.sibling, request.sibling + request.params.n)
                world.abort(name, rng.choice((None, *every)))
            if rng.random() < 0.03 and world.executor.rows:
                world.executor.poisoned.add(rng.choice(list(world.executor.rows)))
            world.step()
    world.finish()
    world.check()
    return world


@pytest.mark.parametrize("part", range(8))
def test_random_schedules(part: int) -> None:
    """Every text is that of the undisturbed run; the books balance after every step."""
    preemptions = hits = 0
    for seed in range(part, SCHEDULES, 8):
        world = run_schedule(seed)
        preemptions += world.scheduler.counters.preemptions
        hits += world.scheduler.counters.prefix_hits
    assert preemptions and hits, "the schedules no longer meet the hard cases"


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_abort_at_every_phase(depth: int, resident: bool) -> None:
    """Waiting, mid-prompt, forking, decoding, preempted, with plans under way: nothing leaks."""
    for when in range(40):
        for target in ("a", "b"):
            for sibling in (None, 0, 1):
                world = World(
                    EngineConfig(max_num_seqs=4, max_num_batched_tokens=6),
                    capacity(num_blocks=14, max_model_len=40, windows=(None, 6)),
                    depth=depth,
                    resident=resident,
                )
                for name in ("a", "b"):
                    params = SamplingParams(n=2, max_tokens=12, ignore_eos=True, seed=1)
                    world.add(Request(id=name, prompt=(1, 2, 3) * 5, params=params))
                for _ in range(when):
                    world.step()
                world.abort(target, sibling)
                world.finish()
                world.check()


def test_depth_is_used() -> None:
    """Where rows cannot be in flight twice, `depth` plans share them and really are under way."""
    world = World(
        EngineConfig(max_num_seqs=6, max_num_batched_tokens=64),
        capacity(num_blocks=200),
        depth=3,
        resident=False,
    )
    for number in range(6):
        params = SamplingParams(max_tokens=20, ignore_eos=True, seed=number)
        world.add(Request(id=str(number), prompt=(1, 2, 3), params=params))
    for _ in range(6):
        world.step()
    world.loop.step()
    under_way = list(world.executor.plans)
    assert len(under_way) == 2, "one of three has just been collected"
    assert [len(plan.rows) for plan in under_way] == [2, 2]


def test_prefix_hit_is_reported_once_and_salt_parts_callers() -> None:
    world = World(EngineConfig(max_num_seqs=4), capacity(num_blocks=100))
    cached = {}
    for name, salt in (("a", ""), ("b", ""), ("c", "other")):
        params = SamplingParams(max_tokens=3, ignore_eos=True, seed=0)
        world.add(Request(id=name, prompt=tuple(range(1, 14)), params=params, cache_salt=salt))
        while world.loop.unfinished:
            for update in world.loop.step():
                if update.num_cached is not None:
                    assert name not in cached
                    cached[name] = update.num_cached
    assert cached == {"a": 0, "b": 12, "c": 0}


def test_waiting_costs_a_step_nothing() -> None:
    """Ten thousand waiting requests are not looked at, step by step."""
    world = World(
        EngineConfig(max_num_seqs=1, max_waiting=20_000), capacity(num_blocks=40), checked=False
    )
    touched = []
    peek = world.scheduler.roster.waiting.peek

    def counted() -> object:
        touched.append(1)
        return peek()

    world.scheduler.roster.waiting.peek = counted  # type: ignore[method-assign, assignment]
    for number in range(10_000):
        params = SamplingParams(max_tokens=8, ignore_eos=True, seed=0)
        world.add(Request(id=str(number), prompt=(1, 2), params=params))
    for _ in range(8):
        world.step()
    assert len(touched) <= 2


def test_a_prompt_starves_nobody() -> None:
    """Running sequences get their token while a long prompt is computed in pieces."""
    world = World(
        EngineConfig(max_num_seqs=4, max_num_batched_tokens=8),
        capacity(num_blocks=100, max_model_len=128),
    )
    params = SamplingParams(max_tokens=30, ignore_eos=True, seed=0)
    world.add(Request(id="short", prompt=(1, 2), params=params))
    world.step()
    world.add(Request(id="long", prompt=(3, 4) * 40, params=params))
    for _ in range(8):
        before = len(world.texts[("short", 0)])
        world.step()
        assert len(world.texts[("short", 0)]) == before + 1
    world.finish()
    world.check()


@pytest.mark.parametrize("depth", [1, 2])
def test_the_better_rank_takes_blocks_from_the_worse(depth: int) -> None:
    """Also where it computes a prompt, and the worse one its next token."""
    world = World(
        EngineConfig(max_num_seqs=4, max_num_batched_tokens=9, scheduling_policy="priority"),
        capacity(num_blocks=12, max_model_len=40),
        depth=depth,
    )
    roster = world.scheduler.roster
    preempt, victims = roster.preempt, []

    def seen(seq: Sequence) -> None:
        victims.append(seq.request.id)
        preempt(seq)

    roster.preempt = seen  # type: ignore[method-assign]
    params = SamplingParams(max_tokens=24, ignore_eos=True, seed=0)
    world.add(Request(id="low", prompt=(1,) * 15, params=params, priority=5))
    for _ in range(4):
        world.step()
    world.add(Request(id="high", prompt=(2,) * 30, params=replace(params, max_tokens=9)))
    world.finish()
    world.check()
    assert victims == ["low"]


def test_priority_goes_first() -> None:
    world = World(
        EngineConfig(max_num_seqs=1, scheduling_policy="priority"), capacity(num_blocks=40)
    )
    order = []
    for name, priority in (("a", 0), ("low", 5), ("high", -1)):
        params = SamplingParams(max_tokens=4, ignore_eos=True, seed=0)
        world.add(Request(id=name, prompt=(1,), params=params, priority=priority))
        world.step()
    world.finish()
    order = [name for name, _ in world.ends]
    assert order == ["a", "high", "low"]


@pytest.mark.parametrize("cut", [1, 4, 9])
def test_emitted_resumes_exactly(cut: int) -> None:
    first = Request(
        id="a",
        prompt=(1, 2, 3, 4, 5),
        params=SamplingParams(max_tokens=12, ignore_eos=True, seed=9),
    )
    whole = reference(first, 0, [None], 64)
    world = World(EngineConfig(max_num_seqs=2), capacity(num_blocks=40))
    world.add(Request(id="b", prompt=first.prompt, params=first.params, emitted=tuple(whole[:cut])))
    world.finish()
    assert world.texts[("b", 0)] == whole[cut:]
