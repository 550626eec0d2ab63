"""How a step's budget is shared between prompts and sequences that are running."""

from __future__ import annotations

from shoal.engine.config import EngineConfig
from shoal.engine.core.scheduler import Scheduler
from shoal.engine.plan import Plan
from shoal.engine.request import Request, SamplingParams

from .fake import FakeExecutor, capacity

PARAMS = SamplingParams(max_tokens=20, ignore_eos=True, seed=0)


def test_prompts_have_a_part_of_a_step_and_running_sequences_all_of_it() -> None:
    """Two prompts of 10 tokens, 4 of which a step computes, beside eight that are running."""
    room = capacity(num_blocks=100, prompt_tokens=4)
    scheduler, executor = Scheduler(EngineConfig(max_num_seqs=12), room), FakeExecutor(room)

    def step() -> Plan:
        plan = scheduler.schedule()
        assert plan is not None
        executor.submit(plan)
        scheduler.commit(executor.collect())
        return plan

    for number in range(8):
        scheduler.add(Request(id=f"r{number}", prompt=(number + 1,), params=PARAMS))
    while scheduler.num_running < 8:
        step()
    for name, first in (("a", 20), ("b", 30)):
        scheduler.add(Request(id=name, prompt=tuple(range(first, first + 10)), params=PARAMS))
    for parts in ([4], [4], [2, 2], [4], [4]):
        counts = [row.num_tokens for row in step().rows]
        assert [count for count in counts if count > 1] == parts
        assert counts.count(1) >= 8


def test_the_part_that_prompts_have_is_the_devices_where_nobody_asked_for_a_budget() -> None:
    assert EngineConfig().prompt_tokens(256) == 256
    assert EngineConfig().prompt_tokens(None) is None
    assert EngineConfig(max_num_batched_tokens=512).prompt_tokens(256) is None
    assert EngineConfig(enable_chunked_prefill=False).prompt_tokens(256) is None
