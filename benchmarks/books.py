"""The real scheduler and KV books without a model: every sampled token is made up.

For benchmarks of what they hold and what they cost.
"""

from __future__ import annotations

from collections.abc import Iterable
from random import Random

from shoal.cluster.bench.lengths import Lengths, sharegpt
from shoal.engine.config import EngineConfig
from shoal.engine.core.scheduler import Scheduler
from shoal.engine.executor import Capacity
from shoal.engine.plan import CacheSpec, Plan, Result
from shoal.engine.request import Request, SamplingParams

VOCAB = 32_000
CONTEXT = 2048


def scheduler(
    cache_tokens: int,
    block_size: int,
    *,
    max_num_seqs: int = 1024,
    batched_tokens: int = 2048,
    caching: bool = True,
    max_model_len: int = CONTEXT,
) -> Scheduler:
    """The books over a cache of so many tokens."""
    config = EngineConfig(
        model="none",
        max_num_seqs=max_num_seqs,
        enable_prefix_caching=caching,
    )
    capacity = Capacity(
        groups=(CacheSpec(1, 1, None),),
        num_blocks=(1 + cache_tokens // block_size,),
        block_size=block_size,
        max_model_len=max_model_len,
        step_tokens=max(batched_tokens, max_num_seqs),
        vocab_size=VOCAB,
        eos_token_ids=frozenset(),
        dtype="none",
        device="none",
        digest="none",
    )
    return Scheduler(config, capacity)


def chats(num: int, seed: int = 0) -> list[Lengths]:
    """Lengths as ShareGPT has them."""
    random = Random(seed)
    return [sharegpt(random, CONTEXT) for _ in range(num)]


def add(books: Scheduler, lengths: Iterable[Lengths], name: str = "r", seed: int = 0) -> None:
    """Requests of random prompts, no two alike."""
    random = Random(seed)
    for number, (input_len, output_len) in enumerate(lengths):
        books.add(
            Request(
                id=f"{name}{number}",
                prompt=tuple(random.choices(range(VOCAB), k=input_len)),
                params=SamplingParams(max_tokens=output_len, ignore_eos=True, seed=1),
            )
        )


def result(plan: Plan) -> Result:
    """What a step would have brought, all rows the same token."""
    return Result(step=plan.step, tokens=tuple((7,) for row in plan.rows if row.sample))


def live_tokens(books: Scheduler) -> int:
    """Tokens of running sequences whose keys and values are, or are being, written."""
    return sum(seq.computed for seq in books.roster.running.values())


def held_blocks(books: Scheduler) -> int:
    """Blocks that somebody holds."""
    (group,) = books.kv.groups
    return group.num_blocks - 1 - group.num_free
