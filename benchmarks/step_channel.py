"""What a step costs between an executor and its ranks, and how stages of a pipeline overlap.

    python benchmarks/step_channel.py [--ranks 1,2,4] [--steps 2000] [--only sums] [--json FILE]

A plan of about 2 KB goes to every rank and an empty result comes back: over the sockets of
RayExecutor, by plain actor calls, and through Ray's compiled graph. Then the timeline of a
pipeline of two stages that share their work evenly. Last, what a sum over ranks costs: a step of
sums of rows of 1,024 float32 is replayed, in which they are ops, and one in which they are calls
that go through pipes, in turn; each rank is a process of one thread.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch
from shoal.cluster.launch import private_ray
from shoal.cluster.ray_executor import RayExecutor
from shoal.engine.config import from_keys
from shoal.engine.core.scheduler import Scheduler
from shoal.engine.loop import Loop
from shoal.engine.plan import Plan
from shoal.engine.request import Request, SamplingParams
from shoal.engine.worker.exchange import Exchange
from shoal.kernels import ops
from shoal.kernels.cpu.bindings import Pool
from shoal.kernels.cpu.recorder import Recorder, Rows
from shoal.kernels.cpu.tape import Counts, Tape
from torch import Tensor

MODEL = Path(__file__).resolve().parent.parent / "configs" / "tiny"
PLAN = Plan(step=0, stopped=tuple(range(256)) * 4)
IDLE_S = 5.0
ROWS, SUMS, TURNS = (1, 8, 32, 512), 56, 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--ranks", default="1,2,4")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--only", choices=["sums"])
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    ranks = [int(count) for count in chosen.ranks.split(",")]
    found: dict[str, Any] = {"command": sys.argv}
    if chosen.only != "sums":
        found |= channels(ranks, chosen.steps)
    found["sums"] = [figures for count in ranks if count > 1 for figures in sums(count)]
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(found, indent=1) + "\n")


def channels(ranks: list[int], steps: int) -> dict[str, Any]:
    found: list[dict[str, Any]] = []
    print("channel          ranks  p50 us  p99 us  CPU of an idle rank")
    with tempfile.TemporaryDirectory() as logs, private_ray(Path(logs)):
        for count in ranks:
            for channel in (sockets, actor_calls, compiled_graph):
                figures = {"channel": channel.__name__, "ranks": count, **channel(count, steps)}
                found.append(figures)
                print(
                    f"{channel.__name__:15}  {count:5}  {figures['p50_us']:6.0f}  "
                    f"{figures['p99_us']:6.0f}  {figures['idle_cpu']:.1%}",
                    flush=True,
                )
        return {"channels": found, "pipeline": pipeline()}


def executor_of(**keys: Any) -> tuple[RayExecutor, Any, Any]:
    plain = {"max_model_len": 512, "num_gpu_blocks_override": 512, "threads": 1}
    config = from_keys({"model": str(MODEL), **plain, **keys})
    executor = RayExecutor(config)
    capacity = executor.start(config)
    executor.watch(lambda lost: sys.exit(f"{lost}"))
    return executor, config, capacity


def sockets(ranks: int, steps: int) -> dict[str, float]:
    """RayExecutor as it serves; the bundled model has layers enough for one a stage."""
    shape = {"tensor_parallel_size": ranks} if ranks != 3 else {"pipeline_parallel_size": 3}
    executor, _, _ = executor_of(**shape)
    numbers = iter(range(10**9))

    def step() -> None:
        executor.submit(dataclasses.replace(PLAN, step=next(numbers)))
        executor.collect()

    try:
        return timed(step, steps) | {"idle_cpu": idle([rank.pid for rank in executor.ranks()])}
    finally:
        executor.close()


class Echo:
    """An actor that takes a plan and gives nothing."""

    def pid(self) -> int:
        return os.getpid()

    def run(self, plan: bytes) -> int:
        return len(plan)


def echoes(ranks: int) -> tuple[list[Any], bytes]:
    from shoal.cluster import rank_wire

    actors = [ray.remote(Echo).options(num_cpus=0.01).remote() for _ in range(ranks)]
    return actors, bytes(rank_wire.frame(rank_wire.run_of(PLAN)))


def actor_calls(ranks: int, steps: int) -> dict[str, float]:
    actors, plan = echoes(ranks)
    pids = ray.get([actor.pid.remote() for actor in actors])
    figures = timed(lambda: ray.get([actor.run.remote(plan) for actor in actors]), steps // 4)
    figures["idle_cpu"] = idle(pids)
    for actor in actors:
        ray.kill(actor)
    return figures


def compiled_graph(ranks: int, steps: int) -> dict[str, float]:
    from ray.dag import InputNode, MultiOutputNode

    actors, plan = echoes(ranks)
    pids = ray.get([actor.pid.remote() for actor in actors])
    with InputNode() as given:
        graph = MultiOutputNode([actor.run.bind(given) for actor in actors])
    compiled = graph.experimental_compile()
    figures = timed(lambda: ray.get(compiled.execute(plan)), steps)
    figures["idle_cpu"] = idle(pids)
    compiled.teardown()
    for actor in actors:
        ray.kill(actor)
    return figures


def timed(step: Callable[[], object], steps: int) -> dict[str, float]:
    for _ in range(50):
        step()
    spent = []
    for _ in range(steps):
        begin = time.perf_counter()
        step()
        spent.append(1e6 * (time.perf_counter() - begin))
    return {
        "p50_us": statistics.median(spent),
        "p99_us": statistics.quantiles(spent, n=100)[98],
    }


def idle(pids: list[int]) -> float:
    """Share of a core that the busiest of these processes uses while nothing is asked of it."""
    before = [cpu_s(pid) for pid in pids]
    time.sleep(IDLE_S)
    return max(cpu_s(pid) - then for pid, then in zip(pids, before, strict=True)) / IDLE_S


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def pipeline() -> dict[str, Any]:
    """32 streams over two stages: how much of the time each computes, and plans under way."""
    executor, config, capacity = executor_of(pipeline_parallel_size=2)
    try:
        scheduler = Scheduler(config, capacity, depth=executor.depth, resident=executor.resident)
        loop = Loop(scheduler, executor)
        params = SamplingParams(temperature=0, max_tokens=100, ignore_eos=True)
        for number in range(32):
            loop.add(Request(id=str(number), prompt=(5, 6, number + 7), params=params))
        while loop.unfinished:
            loop.step()
        stages: list[list[Any]] = executor.call("timeline")  # type: ignore[assignment]
    finally:
        executor.close()
    begin = max(stage[0][1] for stage in stages)
    end = min(stage[-1][2] for stage in stages)
    busy = [
        sum(min(e, end) - max(b, begin) - w for _, b, e, w in stage if b < end and e > begin)
        / (end - begin)
        for stage in stages
    ]
    print("\nsteps of two stages, ms since the first shown; . is waiting for the other stage")
    for number, stage in enumerate(stages):
        shown = stage[len(stage) // 2 :][:6]
        first = stages[0][len(stages[0]) // 2][1]
        spans = [
            f"{s}: {1e3 * (b - first):.2f} .{1e3 * w:.2f} {1e3 * (e - first):.2f}"
            for s, b, e, w in shown
        ]
        print(f"stage {number}  " + "  |  ".join(spans))
    print("busy: " + ", ".join(f"stage {i} {share:.0%}" for i, share in enumerate(busy)))
    return {"depth": executor.depth, "busy": busy}


def sums(ranks: int) -> list[dict[str, float]]:
    """Microseconds a sum, by number of rows: the median and the best of many turns."""
    context = multiprocessing.get_context("spawn")
    barrier, folders, answers = context.Barrier(ranks), context.SimpleQueue(), context.SimpleQueue()
    given = ranks, barrier, folders, answers
    processes = [context.Process(target=summing, args=(rank, *given)) for rank in range(ranks)]
    for process in processes:
        process.start()
    found: list[dict[str, float]] = answers.get()
    for process in processes:
        process.join()
    print(f"\na sum over {ranks} ranks, us: median (best)   inside a step      through pipes")
    for each in found:
        print(
            f"{each['rows']:32} rows   {each['op_us']:9.1f} ({each['op_best_us']:.1f})  "
            f"{each['call_us']:12.1f} ({each['call_best_us']:.1f})"
        )
    return found


def summing(rank: int, ranks: int, barrier: Any, folders: Any, answers: Any) -> None:
    """One of the ranks; the first answers."""
    torch.set_num_threads(1)

    def share(folder: str) -> str:
        for _ in range(ranks - 1 if folder else 0):
            folders.put(folder)
        return folder or str(folders.get())

    exchange = Exchange(rank, ranks, share, barrier.wait)
    op = exchange.mesh().all_reduce
    tapes = {"op": step_of(op), "call": step_of(partial(ops.across, exchange.all_reduce))}
    pool, found = Pool(1), []
    for rows in ROWS:
        spent: dict[str, list[float]] = {name: [] for name in tapes}
        for name, tape in list(tapes.items()) * TURNS:
            barrier.wait()
            begin = time.perf_counter()
            tape.run(pool, Counts(rows, rows, 1))
            spent[name].append(1e6 * (time.perf_counter() - begin) / SUMS)
        figures: dict[str, float] = {"ranks": ranks, "rows": rows}
        for name, each in spent.items():
            figures |= {f"{name}_us": statistics.median(each), f"{name}_best_us": min(each)}
        found.append(figures)
    if rank == 0:
        answers.put(found)
    exchange.close()


def step_of(all_reduce: Callable[[Tensor], Tensor]) -> Tape:
    """A step of nothing but sums."""
    recorder = Recorder(dict(zip(Rows, (7, 5, 2, 3), strict=True)), lambda: "sums")
    x = recorder.given(torch.zeros(max(ROWS), 1024), Rows.TOKENS)
    with recorder.recording():
        for _ in range(SUMS):
            x = all_reduce(x)
    return Tape(recorder.lines, recorder.view(x), Counts(max(ROWS), max(ROWS), 1))


if __name__ == "__main__":
    main()
