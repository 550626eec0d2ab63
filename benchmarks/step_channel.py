"""What a step costs between an executor and its ranks, and how stages of a pipeline overlap.

    python benchmarks/step_channel.py [--ranks 1,2,4] [--steps 2000] [--json FILE]

A plan of about 2 KB goes to every rank and an empty result comes back: over the sockets of
RayExecutor, by plain actor calls, and through Ray's compiled graph. Then the timeline of a
pipeline of two stages that share their work evenly.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from shoal.cluster.launch import private_ray
from shoal.cluster.ray_executor import RayExecutor
from shoal.engine.config import from_keys
from shoal.engine.core.scheduler import Scheduler
from shoal.engine.loop import Loop
from shoal.engine.plan import Plan
from shoal.engine.request import Request, SamplingParams

MODEL = Path(__file__).resolve().parent.parent / "configs" / "tiny"
PLAN = Plan(step=0, stopped=tuple(range(256)) * 4)
IDLE_S = 5.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--ranks", default="1,2,4")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    found: dict[str, Any] = {"command": sys.argv, "channels": []}
    print("channel          ranks  p50 us  p99 us  CPU of an idle rank")
    with tempfile.TemporaryDirectory() as logs, private_ray(Path(logs)):
        for ranks in map(int, chosen.ranks.split(",")):
            for channel in (sockets, actor_calls, compiled_graph):
                figures = {"channel": channel.__name__, "ranks": ranks}
                figures |= channel(ranks, chosen.steps)
                found["channels"].append(figures)
                print(
                    f"{channel.__name__:15}  {ranks:5}  {figures['p50_us']:6.0f}  "
                    f"{figures['p99_us']:6.0f}  {figures['idle_cpu']:.1%}",
                    flush=True,
                )
        found["pipeline"] = pipeline()
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(found, indent=1) + "\n")


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
    from shoal.cluster import rank_wire, wire

    actors = [ray.remote(Echo).options(num_cpus=0.01).remote() for _ in range(ranks)]
    return actors, wire.frame(rank_wire.Run(PLAN))


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


if __name__ == "__main__":
    main()
