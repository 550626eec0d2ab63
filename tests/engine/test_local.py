"""The executor of one rank: order, overlap, and what happens when the rank fails."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import Future

import pytest
from shoal.engine.config import EngineConfig
from shoal.engine.errors import ConfigError, WorkerLost
from shoal.engine.executor import Capacity
from shoal.engine.local import LocalExecutor
from shoal.engine.plan import Plan, Result

FOUND = Capacity(
    groups=(),
    num_blocks=(),
    block_size=16,
    max_model_len=64,
    step_tokens=512,
    vocab_size=9,
    eos_token_ids=frozenset(),
    dtype="float32",
    device="cpu",
    digest="",
)
PLAIN, OVERLAPPED = EngineConfig(), EngineConfig(async_scheduling=True)


class FakeRank:
    """Answers plans in order; waits for `gate` first, raises at step `fatal`."""

    def __init__(self, fatal=-1):
        self.gate = threading.Event()
        self.gate.set()
        self.fatal = fatal
        self.log: list[object] = []
        self.thread: threading.Thread | None = None

    def overlaps(self, config):
        return False

    def start(self, config):
        if config.max_num_seqs == 1:
            raise ConfigError("too few", "max_num_seqs")
        self.thread = threading.current_thread()
        return FOUND

    def run(self, plan):
        assert threading.current_thread() is self.thread
        assert self.gate.wait(60)
        self.log.append(plan.step)
        if plan.step == self.fatal:
            raise RuntimeError("out of memory")
        return Result(step=plan.step, tokens=())

    def call(self, method, *args):
        self.log.append(method)
        if method == "bad":
            raise ValueError(method)
        return [method, *args]

    def close(self):
        self.log.append("closed")


@pytest.fixture(params=[PLAIN, OVERLAPPED], ids=["plain", "overlapped"])
def config(request):
    return request.param


def test_results_come_in_the_order_of_the_plans(config):
    rank = FakeRank()
    executor = LocalExecutor(config, rank)
    assert executor.start(config) is FOUND
    assert executor.depth == (2 if config.async_scheduling else 1) and executor.resident
    for first in range(0, 6, executor.depth):
        steps = range(first, first + executor.depth)
        for step in steps:
            executor.submit(Plan(step=step))
        assert [executor.collect().step for _ in steps] == list(steps)
    executor.close()
    executor.close()
    assert rank.log == [*range(6), "closed"]


def test_two_plans_are_under_way_at_once():
    rank = FakeRank()
    executor = LocalExecutor(OVERLAPPED, rank)
    executor.start(OVERLAPPED)
    rank.gate.clear()
    executor.submit(Plan(step=0))
    executor.submit(Plan(step=1))
    assert rank.log == []
    assert rank.thread is not threading.current_thread()
    rank.gate.set()
    assert [executor.collect().step, executor.collect().step] == [0, 1]
    executor.close()


def test_control_calls_wait_their_turn(config):
    rank = FakeRank()
    executor = LocalExecutor(config, rank)
    executor.start(config)
    executor.submit(Plan(step=0))
    assert executor.call("health", 1, "x") == [["health", 1, "x"]]
    assert rank.log == [0, "health"]
    with pytest.raises(ValueError, match="bad"):
        executor.call("bad")
    assert executor.collect().step == 0
    executor.close()


def test_a_failing_rank_is_lost_for_good(config):
    rank = FakeRank(fatal=1)
    executor = LocalExecutor(config, rank)
    executor.start(config)
    executor.submit(Plan(step=0))
    assert executor.collect().step == 0
    executor.submit(Plan(step=1))
    with pytest.raises(WorkerLost, match="RuntimeError: out of memory") as error:
        executor.collect()
    assert isinstance(error.value.__cause__, RuntimeError)
    for attempt in (executor.collect, lambda: executor.submit(Plan(step=2))):
        with pytest.raises(WorkerLost):
            attempt()
    executor.close()
    assert rank.log[-1] == "closed"


def test_errors_of_the_start_pass_through(config):
    few = EngineConfig(max_num_seqs=1, async_scheduling=config.async_scheduling)
    executor = LocalExecutor(few, FakeRank())
    with pytest.raises(ConfigError) as error:
        executor.start(few)
    assert error.value.key == "max_num_seqs"
    executor.close()


CHILD = """
import os, sys
from shoal.engine.config import EngineConfig
from shoal.engine.errors import LoadError
from shoal.engine.local import LocalExecutor
assert "torch" not in sys.modules
config = EngineConfig(model="/nowhere")
try:
    LocalExecutor(config).start(config)
except LoadError:
    print(os.environ.get("GOMP_SPINCOUNT"))
"""


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")],
)
def test_threads_may_sleep_unless_told_otherwise(given, expected):
    env = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run(
        [sys.executable, "-c", CHILD], env=env | given, capture_output=True, text=True
    )
    assert done.stdout.strip() == expected, done.stderr


def test_closing_drops_what_waits(config):
    rank = FakeRank()
    executor = LocalExecutor(config, rank)
    executor.start(config)
    for step in range(executor.depth):
        executor.submit(Plan(step=step))
    executor.close()
    with pytest.raises(WorkerLost, match="closed"):
        executor.collect()
    alive = [t for t in threading.enumerate() if t.name.startswith("shoal-rank")]
    assert not alive


class Device(FakeRank):
    """A rank whose device computes by itself: `launch` returns before anything is done."""

    def overlaps(self, config):
        return True

    def launch(self, plan):
        assert threading.current_thread() is self.thread
        self.log.append(f"launch {plan.step}")
        done: Future[Result] = Future()
        finish = done.result

        class Pending:
            def result(_):
                done.set_result(self.run(plan))
                return finish()

        return Pending()


@pytest.mark.parametrize(("asked", "depth"), [(None, 2), (True, 2), (False, 1)])
def test_a_device_that_computes_by_itself_is_told_of_the_next_plan_first(asked, depth):
    rank = Device()
    executor = LocalExecutor(EngineConfig(async_scheduling=asked), rank)
    executor.start(EngineConfig(async_scheduling=asked))
    assert executor.depth == depth
    assert rank.thread is threading.current_thread()
    for step in range(depth):
        executor.submit(Plan(step=step))
    assert [executor.collect().step for _ in range(depth)] == list(range(depth))
    launched = [f"launch {step}" for step in range(depth)]
    assert rank.log == [*launched, *range(depth)]
    executor.close()
