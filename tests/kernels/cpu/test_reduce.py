"""Sums over the ranks of a node, in processes of their own that share a slab."""

from __future__ import annotations

import ctypes
import mmap
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest
import torch
from shoal.kernels.cpu.binding import bind
from shoal.kernels.cpu.bindings import Pool, loaded
from shoal.kernels.cpu.ranks import Ranks
from shoal.kernels.cpu.structures import Extent, Kind, Sizes, Step, step
from torch import Tensor

pytestmark = [
    pytest.mark.skipif(loaded() is None, reason="the native library is not built"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of a fork beside threads
]
DEADLINE_S = 60
ROUNDS = 40
STILL = 10
ARRIVAL_BYTES = 64


class Node(NamedTuple):
    """What the ranks of a node share: a slab with halves of so many bytes, and a pipe a rank."""

    slab: Tensor
    ends: list[tuple[int, int]]

    def rank(self, rank: int) -> Ranks:
        """Sits down at a place: whoever waits for it sees it go."""
        for other, (_, write) in enumerate(self.ends):
            if other != rank:
                os.close(write)
        pipes = [-1 if other == rank else read for other, (read, _) in enumerate(self.ends)]
        return Ranks(rank, self.slab, torch.tensor(pipes, dtype=torch.int32))


@contextmanager
def node(size: int, half: int = 1 << 12) -> Iterator[Node]:
    slab = mmap.mmap(-1, size * (ARRIVAL_BYTES + 2 * half))
    made = Node(torch.frombuffer(slab, dtype=torch.uint8), [os.pipe() for _ in range(size)])
    yield made
    for read, _ in made.ends:
        os.close(read)


def reducer(ranks: Ranks, x: Tensor, threads: int) -> Callable[[int], int]:
    """Sums the first rows of x at every call."""
    fields = {
        "x": x,
        "slab": ranks.slab,
        "pipes": ranks.pipes,
        "slab_bytes": ranks.slab.nbytes,
        "columns": x.shape[1],
        "rank": ranks.rank,
        "ranks": len(ranks.pipes),
        "extent": Extent.TOKENS,
    }
    args, pool = bind(Kind.REDUCE, fields), Pool(threads)
    steps = (Step * 1)(step(Kind.REDUCE, args))
    return lambda rows: pool.run(steps, Sizes(rows, 0, 0)) if args.columns else 0


def part(rank: int, round_: int, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """What a rank brings, of very different sizes: another order of additions gives other bits."""
    draw = torch.Generator().manual_seed(100 * rank + round_)
    return (torch.randn(rows, columns, generator=draw) * 10.0**rank).to(dtype)


def in_order(size: int, round_: int, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    total = part(0, round_, rows, columns, dtype).float()
    for rank in range(1, size):
        total += part(rank, round_, rows, columns, dtype).float()
    return total.to(dtype)


def start(shared: Node, size: int, run: Callable[[Ranks], bool]) -> list[int]:
    """A process a rank; each ends with 0 where `run` is true."""
    pids = []
    for rank in range(size):
        if (pid := os.fork()) == 0:
            good = False
            try:
                signal.alarm(DEADLINE_S)
                good = run(shared.rank(rank))
            finally:
                os._exit(0 if good else 1)
        pids.append(pid)
    for _, write in shared.ends:
        os.close(write)
    return pids


def end(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("size", "threads", "columns"), [(2, 1, 75), (2, 2, 64), (3, 2, 1), (4, 1, 333)]
)
def test_all_ranks_hold_the_sum_in_their_order(
    size: int, threads: int, columns: int, dtype: torch.dtype
) -> None:
    def run(ranks: Ranks) -> bool:
        x = torch.empty(64, columns + 5, dtype=dtype)[:, :columns]
        reduce, good = reducer(ranks, x, threads), True
        for round_ in range(ROUNDS):
            rows = (1, 7, 0, 64)[round_ % 4]  # 64 rows are more than a half holds
            x.copy_(part(ranks.rank, round_, 64, columns, dtype))
            good &= reduce(rows) == 0
            good &= torch.equal(x[:rows], in_order(size, round_, 64, columns, dtype)[:rows])
            good &= torch.equal(x[rows:], part(ranks.rank, round_, 64, columns, dtype)[rows:])
        return good

    with node(size) as shared:
        assert [end(pid) for pid in start(shared, size, run)] == [0] * size


def test_every_instruction_set_adds_alike(instructions: str) -> None:
    def run(ranks: Ranks) -> bool:
        x = part(ranks.rank, 0, 9, 77, torch.bfloat16)
        return reducer(ranks, x, 1)(9) == 0 and torch.equal(
            x, in_order(2, 0, 9, 77, torch.bfloat16)
        )

    with node(2) as shared:
        assert [end(pid) for pid in start(shared, 2, run)] == [0, 0]


@pytest.mark.parametrize("how", ["killed", "stopped and killed", "left"])
def test_a_rank_that_is_gone_fails_the_step_of_the_others(how: str) -> None:
    def run(ranks: Ranks) -> bool:
        x = torch.ones(3, 8)
        reduce = reducer(ranks, x, 2)
        assert reduce(3) == 0
        if ranks.rank == 1:
            if how == "left":
                return True
            os.kill(os.getpid(), signal.SIGSTOP if "stopped" in how else signal.SIGKILL)
        return reduce(3) == 1

    with node(3) as shared:
        pids = start(shared, 3, run)
        if "stopped" in how:
            os.waitpid(pids[1], os.WUNTRACED)
            _wait_until_it_sleeps(pids[0])
            os.kill(pids[1], signal.SIGKILL)
        assert end(pids[1]) == (0 if how == "left" else -signal.SIGKILL)
        assert [end(pids[0]), end(pids[2])] == [0, 0]


def _wait_until_it_sleeps(pid: int) -> None:
    """Until a process has used no CPU for a while, though what it waits for does not come."""
    ticks, still, deadline = -1, 0, time.monotonic() + DEADLINE_S
    while still < STILL:
        assert time.monotonic() < deadline, "it is busy, waiting for a rank that is stopped"
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(") ")[2].split()
        before, ticks = ticks, int(fields[11]) + int(fields[12])
        still = still + 1 if ticks == before else 0
        time.sleep(0.02)


def test_what_a_rank_brought_before_it_went_is_counted() -> None:
    def run(ranks: Ranks) -> bool:
        x = torch.full((2, 16), float(ranks.rank + 1))
        if ranks.rank == 0:
            gone = select.poll()
            gone.register(int(ranks.pipes[1]), 0)
            gone.poll()
        else:
            threading.Thread(target=_leave_once_arrived, args=(ranks,)).start()
        return reducer(ranks, x, 1)(2) == 0 and bool((x == 3).all())

    with node(2) as shared:
        assert [end(pid) for pid in start(shared, 2, run)] == [0, 0]


def _leave_once_arrived(ranks: Ranks) -> None:
    """End the process while another of its threads waits for the other rank."""
    arrived = ctypes.c_uint32.from_address(ranks.slab.data_ptr() + ranks.rank * ARRIVAL_BYTES)
    while not arrived.value:
        time.sleep(0.001)
    os._exit(0)
