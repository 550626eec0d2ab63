"""A load trace against a fleet that scales: replicas over time with the reasons, losses, TTFT.

    python benchmarks/scaling.py --out benchmarks/results/scaling.json
    python benchmarks/scaling.py --only shoal serve --pace 5 --out ...
    python benchmarks/scaling.py --virtual --out benchmarks/results/scaling-virtual.json

Starts `shoal serve` of the bundled model with 1 to 4 replicas, once for each of POLICIES, and
streams completions at the rates of TRACE, whether or not earlier ones have ended. Every request
that does not end with its tokens counts as lost. Beside the JSON it draws an SVG.

Ray Serve's policy is its own function with its own delays. It counts requests that pass through
Serve, which shoal's do not, so that it is given those that replicas run and hold. `--virtual`
computes the trace, see `scaling_virtual.py`: a busy machine tells nothing of a policy.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import scaling_virtual
from scaling_plot import BUCKET_S, drawn

TRACE = (("steady", 2.0, 30), ("step", 10.0, 60), ("burst", 40.0, 5), ("idle", 0.2, 60))
"""Phases: requests a second, seconds."""

BOUNDS = {"min_replicas": 1, "max_replicas": 4}
POLICIES: dict[str, dict[str, Any]] = {
    "shoal": {"scale_down_after_s": 15},
    "Ray Serve, its defaults": {},
    "Ray Serve, told what a replica carries": {
        "target_ongoing_requests": 24,
        "upscale_delay_s": 1,
        "downscale_delay_s": 15,
        "metrics_interval_s": 0.5,
        "look_back_period_s": 2.5,
    },
}
SHORT = {"shoal": "shoal", "serve": "Ray Serve, its defaults"}
SHORT["serve-told"] = "Ray Serve, told what a replica carries"
READY_S = 180.0
SAMPLE_S = 0.5


def main() -> None:
    """Run the trace under each policy and write what came of it."""
    if sys.argv[1:2] == ["--serve"]:
        serve(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8377)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--pace", type=float, default=1.0, help="factor on all rates")
    parser.add_argument("--only", nargs="+", choices=SHORT, default=[*SHORT], metavar="POLICY")
    parser.add_argument("--virtual", action="store_true", help="compute it, on a fleet of models")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    runs: dict[str, Any] = {}
    command = "python benchmarks/scaling.py " + " ".join(sys.argv[1:])
    found = {"command": command, "cores": os.cpu_count(), "trace": TRACE, "runs": runs}
    for name in POLICIES:
        if name in map(SHORT.get, chosen.only):
            runs[name] = (computed if chosen.virtual else measured)(name, chosen)
            print(json.dumps({name: runs[name]["phases"]}, indent=1), flush=True)
            if chosen.out:
                chosen.out.write_text(json.dumps(found) + "\n")
                chosen.out.with_suffix(".svg").write_text(drawn(found))


def ongoing(context: Any) -> tuple[float, dict[str, Any]]:
    """Ray Serve's own policy, on the requests that replicas run and hold."""
    from ray.serve.autoscaling_policy import replica_queue_length_autoscaling_policy

    held = 0.0
    for replica in context.running_replicas:
        for kind in ("running", "waiting"):
            points = (context.raw_metrics or {}).get(kind, {}).get(replica, [])
            held += sum(point.value for point in points) / max(len(points), 1)
    told = SimpleNamespace(
        current_num_replicas=context.current_num_replicas,
        target_num_replicas=context.target_num_replicas,
        total_num_requests=held,
        config=context.config,
        policy_state=context.policy_state,
    )
    return replica_queue_length_autoscaling_policy(told)


def serve(policy: str, *args: str) -> None:
    """`shoal serve` under a policy of POLICIES, in this process."""
    from shoal.cluster import scaling_policy
    from shoal.cluster.cli import main as shoal

    def of_serve(*_: Any) -> dict[str, Any]:
        return BOUNDS | POLICIES[policy] | {"policy": {"policy_function": ongoing}}

    if policy != "shoal":
        scaling_policy.autoscaling_config = of_serve
    sys.argv = ["shoal", "serve", *args]
    shoal()


def measured(policy: str, chosen: argparse.Namespace) -> dict[str, Any]:
    """What came of the trace under a policy."""
    bounds = BOUNDS | (POLICIES[policy] if policy == "shoal" else {})
    with tempfile.TemporaryDirectory() as logs:
        command = [sys.executable, __file__, "--serve", policy, "--port", str(chosen.port)]
        command += ["--log-dir", logs, "--autoscaling", json.dumps(bounds)]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            return asyncio.run(run(policy, chosen, Path(logs)))
        finally:
            server.terminate()
            server.wait(60)


async def run(policy: str, chosen: argparse.Namespace, logs: Path) -> dict[str, Any]:
    """The trace against the server, once it is ready."""
    url = f"http://127.0.0.1:{chosen.port}"
    connector = aiohttp.TCPConnector(limit=0)
    forever = aiohttp.ClientTimeout()
    async with aiohttp.ClientSession(url, connector=connector, timeout=forever) as client:
        until = time.monotonic() + READY_S
        while not await is_ready(client):
            if time.monotonic() > until:
                sys.exit("the server was not ready in time")
            await asyncio.sleep(0.5)
        begin = began = time.time()
        replicas: list[tuple[float, int, int]] = []
        watching = asyncio.create_task(watch(client, began, replicas))
        asked = []
        for phase, rate, seconds in TRACE:
            for i in range(round(rate * chosen.pace * seconds)):
                due = began + i / (rate * chosen.pace)
                await asyncio.sleep(max(0.0, due - time.time()))
                at = time.time() - begin
                asked.append((phase, at, asyncio.create_task(ask(client, chosen.tokens))))
            began += seconds
            await asyncio.sleep(max(0.0, began - time.time()))
        first = [(phase, round(at, 2), await task) for phase, at, task in asked]
        watching.cancel()
    return told(policy, first, replicas, decisions(logs, begin))


def computed(policy: str, chosen: argparse.Namespace) -> dict[str, Any]:
    """What came of the trace under a policy, in virtual time."""
    make = scaling_virtual.shoals if policy == "shoal" else scaling_virtual.serves
    found = scaling_virtual.measured(make(BOUNDS | POLICIES[policy]), TRACE, chosen.tokens)
    return told(policy, found["first"], found["replicas"], found["decisions"])


def told(
    policy: str,
    first: list[tuple[str, float, float | None]],
    replicas: list[tuple[float, int, int]],
    lines: list[tuple[float, str]],
) -> dict[str, Any]:
    """The figures of a run."""
    step = TRACE[0][2]
    more = next((at for at, ready, _ in replicas if at > step and ready > 1), float("inf"))
    of_step = [(at, s) for phase, at, s in first if phase == "step"]
    return {
        "settings": POLICIES[policy],
        "phases": {phase: figures([s for p, _, s in first if p == phase]) for phase, *_ in TRACE},
        "step_until_a_second_replica": figures([s for at, s in of_step if at < more]),
        "step_from_then_on": figures([s for at, s in of_step if at >= more]),
        "seconds_from_step_to_decision": moved(replicas, step, 2),
        "seconds_from_step_to_capacity": moved(replicas, step, 1),
        "replica_seconds": round(sum((b[0] - a[0]) * a[2] for a, b in pairwise(replicas))),
        "replicas": [b for a, b in pairwise([(-1.0, 0, 0), *replicas]) if a[1:] != b[1:]],
        "ttft_p99_ms": stretches(first),
        "decisions": lines,
    }


async def watch(
    client: aiohttp.ClientSession, began: float, found: list[tuple[float, int, int]]
) -> None:
    """Note ready replicas, and those that were asked for, whenever they change."""
    while True:
        with contextlib.suppress(aiohttp.ClientError, KeyError):
            async with client.get("/cluster") as answer:
                states = [row["state"] for row in (await answer.json())["replicas"]]
            ready, starting = states.count("ready"), states.count("starting")
            found.append((round(time.time() - began, 2), ready, ready + starting))
        await asyncio.sleep(SAMPLE_S)


def stretches(first: list[tuple[str, float, float | None]]) -> list[tuple[float, float]]:
    """The p99 of the first tokens that were asked for in each stretch of time, from its begin."""
    found: dict[int, list[float]] = {}
    for _, at, seconds in first:
        if seconds is not None:
            found.setdefault(int(at / BUCKET_S), []).append(1e3 * seconds)
    return [(n * BUCKET_S, round(sorted(v)[(len(v) - 1) * 99 // 100], 1)) for n, v in found.items()]


def moved(replicas: list[tuple[float, int, int]], step: float, column: int) -> float | None:
    """Seconds from the step until more than one replica was asked for, or ready."""
    at = next((row[0] for row in replicas if row[0] > step and row[column] > 1), None)
    before = any(row[0] <= step and row[column] > 1 for row in replicas)
    return None if at is None or before else round(at - step, 1)


async def is_ready(client: aiohttp.ClientSession) -> bool:
    """Whether the server says so."""
    try:
        async with client.get("/health") as answer:
            return bool((await answer.json())["status"] == "ready")
    except (aiohttp.ClientError, KeyError):
        return False


async def ask(client: aiohttp.ClientSession, tokens: int) -> float | None:
    """Seconds to the first token of a stream; None where it did not end as it should."""
    body = {"prompt": "Once upon a time", "max_tokens": tokens, "stream": True, "ignore_eos": True}
    began, first, whole = time.monotonic(), None, False
    try:
        async with client.post("/v1/completions", json=body) as answer:
            async for line in answer.content:
                if line.startswith(b"data: {") and first is None:
                    first = time.monotonic() - began
                whole = whole or line.startswith(b"data: [DONE]")
    except (aiohttp.ClientError, TimeoutError):
        return None
    return first if whole else None


def figures(first: list[float | None]) -> dict[str, float]:
    """Requests, lost ones, and the quantiles of the time to first token in milliseconds."""
    done = sorted(1e3 * s for s in first if s is not None)
    found = {"requests": len(first), "lost": len(first) - len(done)}
    if done:
        found |= {f"ttft_p{q}_ms": round(done[(len(done) - 1) * q // 100], 1) for q in (50, 99)}
    return found


def decisions(logs: Path, began: float) -> list[tuple[float, str]]:
    """The policy's lines, as the gateway logged them, with their seconds."""
    found = []
    for line in logs.joinpath("gateway-0.log").read_text().splitlines():
        stamp, mark, said = line.partition(" INFO shoal.cluster.decisions: ")
        if mark:
            at = datetime.datetime.strptime(stamp, "%Y-%m-%d %H:%M:%S,%f").timestamp()
            found.append((round(at - began, 1), said))
    return found


if __name__ == "__main__":
    main()
