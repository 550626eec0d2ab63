"""Siblings and beams: what they share, and what becomes of it."""

from __future__ import annotations

import random

import pytest
from shoal.engine.config import EngineConfig
from shoal.engine.plan import Plan
from shoal.engine.request import Request, SamplingParams

from .fake import capacity
from .test_books import World


def beams_of(width: int, **params: object) -> SamplingParams:
    values = {"temperature": 0, "ignore_eos": True, "max_tokens": 12, **params}
    return SamplingParams(n=width, use_beam_search=True, **values)  # type: ignore[arg-type]


def test_fork_copies_one_block_and_shares_the_rest() -> None:
    """With the prefix cache off, too."""
    world = World(
        EngineConfig(max_num_seqs=4, enable_prefix_caching=False),
        capacity(num_blocks=100),
        checked=True,
    )
    params = SamplingParams(n=3, max_tokens=4, ignore_eos=True, seed=5)
    world.add(Request(id="a", prompt=tuple(range(1, 12)), params=params))
    world.step()
    plan = world.scheduler.schedule()
    assert plan is not None
    assert len(plan.copies) == 2 and len(plan.started) == 2
    assert sum(row.num_tokens for row in plan.rows) == 3, "each sibling computes one token"
    shared = [start.blocks[0][:2] for start in plan.started]
    assert shared[0] == shared[1]
    world.executor.submit(plan)
    world.loop._under_way.append(plan)
    world.finish()


@pytest.mark.parametrize("depth", [1, 2])
def test_beams_share_blocks_while_they_fork(depth: int) -> None:
    """In the middle of generation, and with the prefix cache off: one block is copied a fork."""
    world = World(
        EngineConfig(max_num_seqs=8, enable_prefix_caching=False),
        capacity(num_blocks=200, max_model_len=64),
        depth=depth,
    )
    world.add(Request(id="a", prompt=tuple(range(1, 22)), params=beams_of(4)))
    late, computed = 0, 0
    submit = world.executor.submit

    def watched(plan: Plan) -> None:
        nonlocal late, computed
        late += sum(len(start.tokens) > 23 for start in plan.started)
        assert all(start.tokens[:21] == tuple(range(1, 22)) for start in plan.started)
        computed += sum(row.num_tokens for row in plan.rows)
        shared = [start.blocks[0][:5] for start in plan.started]
        assert all(blocks == shared[0] for blocks in shared)
        submit(plan)

    world.executor.submit = watched  # type: ignore[method-assign]
    world.finish()
    world.check()
    assert late, "no beam took over another after its second token"
    assert computed == 21 + 11 * 4, "a fork computes nothing again"


def test_beams_that_do_not_fit_together_take_turns() -> None:
    """Each of four fits alone; no two fit beside each other once they have parted."""
    world = World(
        EngineConfig(max_num_seqs=8, enable_prefix_caching=False),
        capacity(num_blocks=1 + 7, block_size=4, max_model_len=28),
        depth=2,
    )
    world.add(Request(id="a", prompt=(1, 2, 3), params=beams_of(4, max_tokens=25)))
    world.add(Request(id="b", prompt=(1, 2), params=SamplingParams(max_tokens=9, seed=1)))
    world.finish()
    world.check()
    assert world.scheduler.counters.preemptions


@pytest.mark.parametrize("sibling", [None, 0, 1])
def test_beams_aborted_and_failed_at_every_phase(sibling: int | None) -> None:
    """One answer that nobody wants leaves the others; without any, or with a fault, all end."""
    for when in range(24):
        for poison in (False, True):
            world = World(
                EngineConfig(max_num_seqs=6, max_num_batched_tokens=8),
                capacity(num_blocks=24, max_model_len=40, windows=(None, 6)),
                depth=2,
            )
            for name in ("a", "b"):
                params = beams_of(3) if name == "a" else SamplingParams(n=2, max_tokens=9, seed=1)
                world.add(Request(id=name, prompt=(1, 2, 3) * 4, params=params))
            for _ in range(when):
                world.step()
            if poison and world.executor.rows:
                world.executor.poisoned.add(min(world.executor.rows))
            world.abort("a", sibling)
            world.finish()
            world.check()
            if sibling is not None and not poison:
                assert len([end for end in world.ends if end[0] == "a"]) >= 2


@pytest.mark.parametrize("depth", [2, 3])
def test_siblings_begin_though_their_prompt_came_back_from_the_cache(depth: int) -> None:
    """Prompts of whole blocks, which others have computed too, of leaders that are preempted."""
    preemptions = 0
    for seed in range(200):
        rng = random.Random(seed)
        world = World(
            EngineConfig(max_num_seqs=6, max_num_batched_tokens=64),
            capacity(num_blocks=rng.choice((9, 10, 11)), max_model_len=32),
            depth=depth,
        )
        for number in range(5):
            params = SamplingParams(
                n=rng.choice((1, 2, 3)), max_tokens=rng.randint(1, 16), ignore_eos=True, seed=number
            )
            world.add(Request(id=str(number), prompt=(1, 2, 3, 4) * 2, params=params))
            for _ in range(rng.randint(0, 3)):
                world.step()
        world.finish()
        world.check()
        preemptions += world.scheduler.counters.preemptions
    assert preemptions, "the schedules no longer meet the hard case"


def test_a_preempted_sibling_finds_what_it_has_said_in_the_cache() -> None:
    world = World(EngineConfig(max_num_seqs=4), capacity(num_blocks=200, max_model_len=64))
    params = SamplingParams(n=2, max_tokens=50, ignore_eos=True, seed=5)
    world.add(Request(id="a", prompt=tuple(range(1, 11)), params=params))
    for _ in range(43):
        world.step()
    before = world.scheduler.counters.computed_tokens
    world.scheduler.roster.preempt(world.scheduler.roster.live["a"][1])
    world.step()
    assert world.scheduler.counters.computed_tokens - before <= 1 + world.capacity.block_size
    world.finish()
    world.check()


def test_siblings_share_the_prompt_of_one_that_is_gone() -> None:
    """The first ends before the others get a place; with the prefix cache off, too."""
    world = World(
        EngineConfig(max_num_seqs=1, enable_prefix_caching=False), capacity(num_blocks=100)
    )
    params = SamplingParams(n=4, max_tokens=2, ignore_eos=True, seed=5)
    world.add(Request(id="a", prompt=tuple(range(1, 12)), params=params))
    world.finish()
    world.check()
    assert world.scheduler.counters.prompt_tokens == 11 + 3
