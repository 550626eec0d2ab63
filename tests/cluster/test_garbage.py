"""How often everything is looked through for garbage in a server: by counting."""

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


def told(*program: str) -> int:
    """The number that a program prints."""
    done = subprocess.run(
        [sys.executable, "-c", *program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def num_full(how: str) -> int:
    """Full collections in 200 steps of 1,024 rows, while 1,000 requests wait."""
    return told(PROGRAM, how)


GARBAGE = """
from collections import deque
from shoal.cluster import garbage


class Cycle:
    __slots__ = ("itself",)
    num = most = 0

    def __init__(self):
        self.itself = self
        Cycle.num += 1
        Cycle.most = max(Cycle.most, Cycle.num)

    def __del__(self):
        Cycle.num -= 1


garbage.settle()
used = deque(maxlen=200_000)  # long enough to be looked at and spared while they are young
for _ in range(3_000_000):
    used.append(Cycle())
print(Cycle.most)
"""


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="collects in small increments anyway")
def test_steps_of_a_server_do_not_look_through_all_that_waits() -> None:
    assert num_full("as Python does") > 0
    assert num_full("settled") == 0


def test_what_nobody_breaks_up_does_not_add_up() -> None:
    assert told(GARBAGE) < 2_000_000
