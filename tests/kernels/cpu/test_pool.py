"""The threads of the CPU ops: what becomes of them between runs, after a fork and at the end."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from array import array
from collections.abc import Callable

import pytest
import torch
from shoal.kernels.cpu import memory
from shoal.kernels.cpu.bindings import Pool, loaded
from shoal.kernels.cpu.panels import matrix
from shoal.kernels.cpu.structures import Add, Kind, Sizes, Step, step
from torch import Tensor

pytestmark = pytest.mark.skipif(loaded() is None, reason="the native library is not built")
DEADLINE_S = 30


def adder(pool: Pool, into: Tensor) -> Callable[[], int]:
    """Adds 1 to each element at every call."""
    ones = torch.ones_like(into)
    args = Add(matrix(ones), matrix(into), into.shape[1])
    steps = (Step * 1)(step(Kind.ADD_ROWS, args))

    def run() -> int:
        assert len(ones) == len(into) and args.columns
        return pool.run(steps, Sizes(len(into), 0, 0))

    return run


def threads() -> dict[str, str]:
    """State of each of this process's pool threads, by id."""
    found = {}
    for task in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{task}/stat") as file:
                name, _, rest = file.read().partition(") ")
        except FileNotFoundError:
            continue
        if name.endswith("(shoal-cpu"):
            found[task] = rest.split()[0]
    return found


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def test_threads_sleep_when_there_is_no_work_and_wake_for_it() -> None:
    before = set(threads())
    pool, total = Pool(3), torch.zeros(6, 8)
    run = adder(pool, total)
    for round_ in range(1, 4):
        assert run() == 0
        assert bool((total == round_).all())
        mine = set(threads()) - before
        assert len(mine) == 2
        wait_for(lambda mine=mine: all(threads()[task] == "S" for task in mine))
    ran = [_ticks(task) for task in sorted(mine)]
    time.sleep(0.3)
    assert [_ticks(task) for task in sorted(mine)] == ran
    pool.close()
    wait_for(lambda: not set(threads()) & mine)


def _ticks(task: str) -> int:
    """CPU time of a thread, in clock ticks."""
    with open(f"/proc/self/task/{task}/stat") as file:
        fields = file.read().rpartition(") ")[2].split()
    return int(fields[11]) + int(fields[12])


def test_a_lane_that_waits_for_one_without_a_core_sleeps() -> None:
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        pool, total = Pool(2), torch.zeros(2, 1 << 20)
        run, before = adder(pool, total), _sleeps()
        for _ in range(20):
            assert run() == 0
        assert bool((total == 20).all())
        assert _sleeps() - before >= 10
        pool.close()
    finally:
        os.sched_setaffinity(0, cores)


def test_threads_that_slept_use_the_cores_that_the_process_was_given_meanwhile() -> None:
    cores, before = os.sched_getaffinity(0), set(threads())
    if len(cores) < 2:
        pytest.skip("of one core no other can be given")
    pool, total = Pool(2), torch.zeros(2, 8)
    run = adder(pool, total)
    assert run() == 0
    (other,) = set(threads()) - before
    wait_for(lambda: threads()[other] == "S")
    try:
        for given in ({min(cores)}, cores):
            os.sched_setaffinity(0, given)
            os.sched_setaffinity(int(other), given)
            assert run() == 0
            wait_for(lambda: threads()[other] == "S")
            assert run() == 0 and os.sched_getaffinity(int(other)) == given
    finally:
        os.sched_setaffinity(0, cores)
        pool.close()


def test_pages_are_taken_while_there_is_no_work_and_keep_what_they_hold() -> None:
    pool, total = Pool(2), torch.zeros(4, 8)
    run = adder(pool, total)
    parts = [memory.empty((size,), torch.uint8) for size in (5 << 20, 3, 9 << 20)]
    parts[0][4 << 20] = 77
    pool.touch(parts)
    end = time.monotonic() + DEADLINE_S
    while not all(map(_resident, parts)):
        assert run() == 0
        time.sleep(0.01)
        assert time.monotonic() < end, "some pages were not taken"
    assert int(parts[0].sum()) == 77 and not parts[1].any() and not parts[2].any()
    pool.close()


def _resident(part: Tensor) -> bool:
    """Whether all pages of a tensor have memory."""
    page = 4096
    first, last = part.data_ptr() // page, (part.data_ptr() + part.nbytes - 1) // page
    with open("/proc/self/pagemap", "rb") as file:
        file.seek(first * 8)
        entries = array("Q", file.read((last - first + 1) * 8))
    return all(entry >> 63 for entry in entries)


def _sleeps() -> int:
    """How often the calling thread has given its core up by itself."""
    with open("/proc/thread-self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("voluntary_ctxt"))


@pytest.mark.parametrize("threads", [0, -1])
def test_a_pool_of_no_threads_is_refused(threads: int) -> None:
    with pytest.raises(MemoryError, match=f"for a pool of {threads}"):
        Pool(threads)


def test_closing_twice_is_harmless() -> None:
    pool = Pool(2)
    pool.close()
    pool.close()


def test_pools_run_side_by_side() -> None:
    pools = [Pool(2) for _ in range(3)]
    totals = [torch.zeros(5, 16) for _ in pools]
    runs = [adder(pool, total) for pool, total in zip(pools, totals, strict=True)]
    for _ in range(20):
        for run in runs:
            assert run() == 0
    assert all(bool((total == 20).all()) for total in totals)
    for pool in pools:
        pool.close()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_has_threads_of_its_own() -> None:
    pool, total = Pool(2), torch.zeros(4, 8)
    run = adder(pool, total)
    assert run() == 0
    child = os.fork()
    if child == 0:
        good = run() == 0 and bool((total == 2).all())
        pool.close()
        os._exit(0 if good else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert run() == 0 and bool((total == 2).all())
    pool.close()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_may_close_what_it_never_ran() -> None:
    pool = Pool(2)
    child = os.fork()
    if child == 0:
        pool.close()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    pool.close()


REFUSED = """
import os, resource
import torch
from shoal.kernels.cpu.bindings import Pool
from shoal.kernels.cpu.panels import matrix
from shoal.kernels.cpu.structures import Add, Kind, Sizes, Step, step

pool, total, ones = Pool(3), torch.zeros(6, 8), torch.ones(6, 8)
args = Add(matrix(ones), matrix(total), 8)
steps = (Step * 1)(step(Kind.ADD_ROWS, args))
run = lambda: pool.run(steps, Sizes(6, 0, 0))
assert run() == 0
if os.fork():
    raise SystemExit(os.waitstatus_to_exitcode(os.wait()[1]))
taken = Pool(3)  # the stacks that the parent's threads had
before = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (1 << 20, before[1]))  # no room for another
refused = [run(), run()]
resource.setrlimit(resource.RLIMIT_AS, before)
good = refused == [1, 1] and run() == 0 and bool((total == 2).all())
os._exit(0 if good else 1)
"""


def test_a_forked_child_without_threads_fails_each_time_and_recovers() -> None:
    """In a process of its own: the C library keeps stacks of threads that ended."""
    command = [sys.executable, "-W", "ignore", "-c", REFUSED]
    done = subprocess.run(command, timeout=DEADLINE_S, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


PAIRED = (0, 0, 2, 2, 4, 4, 6, 6)
SPLIT = (0, 1, 2, 3, 0, 1, 2, 3)
EIGHT = frozenset(range(8))
CPUS = 1024
"""As many as a cpu_set_t has bits."""


@pytest.mark.parametrize(
    ("cores", "allowed", "taken", "start", "right"),
    [
        # The next core without a lane, from the lane's own CPU on and round.
        (PAIRED, EIGHT, {0}, 0, 2),
        (PAIRED, EIGHT, {4}, 4, 6),
        (PAIRED, EIGHT, {7}, 7, 0),
        (PAIRED, EIGHT, {0, 3, 4}, 0, 6),
        (SPLIT, EIGHT, {0}, 0, 1),
        (SPLIT, EIGHT, {3}, 3, 4),
        (SPLIT, EIGHT, {0, 5}, 0, 2),
        (SPLIT, EIGHT, {7}, 7, 0),
        # No core is without a lane: the next CPU without one.
        (PAIRED, EIGHT, {0, 2, 4, 6}, 4, 5),
        (SPLIT, EIGHT, {0, 1, 2, 3}, 2, 4),
        # Nowhere else.
        (PAIRED, EIGHT, set(EIGHT), 5, 5),
        # Only where it may be.
        (PAIRED, {0, 1, 6}, {0}, 0, 6),
        (SPLIT, {0, 4}, {0}, 0, 4),
        (PAIRED, {0}, {0}, 0, 0),
    ],
)
def test_a_lane_moves_to_a_core_without_one(
    cores: tuple[int, ...], allowed: set[int], taken: set[int], start: int, right: int
) -> None:
    native = loaded()
    assert native is not None
    every = (ctypes.c_int32 * CPUS)(*cores, *range(len(cores), CPUS))
    assert native.shoal_apart(every, _cpu_set(allowed), _cpu_set(taken), start) == right


def _cpu_set(cpus: set[int]) -> bytes:
    return sum(1 << cpu for cpu in cpus).to_bytes(CPUS // 8, "little")
