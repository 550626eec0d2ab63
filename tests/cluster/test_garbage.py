"""How often everything is looked through for garbage while a server computes: by counting."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import gc, sys
from shoal.cluster import garbage
from shoal.engine.config import EngineConfig
from shoal.engine.core.scheduler import Scheduler
from shoal.engine.executor import Capacity
from shoal.engine.plan import CacheSpec, Result
from shoal.engine.request import Request, SamplingParams

ROWS, WAITING, PROMPT = 1024, 1000, 20

gc.collect()
if sys.argv[1] == "settled":
    garbage.settle()
else:
    gc.freeze()
capacity = Capacity(
    groups=(CacheSpec(1, 8),),
    num_blocks=(40_000,),
    block_size=16,
    max_model_len=4096,
    step_tokens=ROWS * PROMPT,
    vocab_size=100,
    eos_token_ids=frozenset({0}),
    dtype="none",
    device="none",
    digest="none",
)
made = Scheduler(EngineConfig(model="none", max_num_seqs=ROWS, max_model_len=4096), capacity)
params = SamplingParams(max_tokens=4000, ignore_eos=True, seed=0)
for number in range(ROWS + WAITING):
    made.add(Request(id=str(number), prompt=(7,) * PROMPT, params=params))
full = 0

def count(phase, info):
    global full
    full += phase == "start" and info["generation"] == 2

gc.callbacks.append(count)
for _ in range(200):
    plan = made.schedule()
    made.commit(Result(step=plan.step, tokens=((5,),) * ROWS))
print(full)
"""


def num_full(how: str) -> int:
    """Full collections in 200 steps of 1,024 rows, while 1,000 requests wait."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="collects in small increments anyway")
def test_steps_of_a_server_do_not_look_through_all_that_waits() -> None:
    assert num_full("as Python does") > 0
    assert num_full("settled") == 0
