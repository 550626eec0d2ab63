"""A load trace against a fleet that scales: replicas over time with the reasons, losses, TTFT.

    python benchmarks/scaling.py --out benchmarks/results/scaling.json

Starts `shoal serve` of the bundled model with `autoscaling` from 1 to 4 replicas and streams
completions at the rates of TRACE, whether or not earlier ones have ended. Every request that does
not end with its tokens counts as lost.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp

TRACE = (("steady", 2.0, 30), ("step", 10.0, 45), ("burst", 40.0, 5), ("idle", 0.2, 60))
"""Phases: requests a second, seconds."""

SCALING = {"min_replicas": 1, "max_replicas": 4, "scale_down_after_s": 15}
READY_S = 180.0


def main() -> None:
    """Run the trace and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8377)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--pace", type=float, default=1.0, help="factor on all rates")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as logs:
        command = [sys.executable, "-m", "shoal", "serve", "--port", str(chosen.port)]
        command += ["--log-dir", logs, "--autoscaling", json.dumps(SCALING)]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            found = asyncio.run(run(chosen, Path(logs)))
        finally:
            server.terminate()
            server.wait(60)
    text = json.dumps(found, indent=1)
    if chosen.out:
        chosen.out.write_text(text + "\n")
    print(text)


async def run(chosen: argparse.Namespace, logs: Path) -> dict[str, Any]:
    """The trace against the server, once it is ready."""
    url = f"http://127.0.0.1:{chosen.port}"
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(url, connector=connector) as client:
        until = time.monotonic() + READY_S
        while not await is_ready(client):
            if time.monotonic() > until:
                sys.exit("the server was not ready in time")
            await asyncio.sleep(0.5)
        began, asked = time.time(), []
        for phase, rate, seconds in TRACE:
            for i in range(round(rate * chosen.pace * seconds)):
                due = began + i / (rate * chosen.pace)
                await asyncio.sleep(max(0.0, due - time.time()))
                asked.append((phase, asyncio.create_task(ask(client, chosen.tokens))))
            began += seconds
            await asyncio.sleep(max(0.0, began - time.time()))
        first = [(phase, await task) for phase, task in asked]
    return {
        "scaling": SCALING,
        "trace": TRACE,
        "phases": {phase: figures([s for p, s in first if p == phase]) for phase, *_ in TRACE},
        "decisions": decisions(logs),
    }


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


def figures(first: list[float | None]) -> dict[str, Any]:
    """Requests, lost ones, and the quantiles of the time to first token in milliseconds."""
    done = sorted(1e3 * s for s in first if s is not None)
    quantiles = {f"ttft_p{q}_ms": round(done[(len(done) - 1) * q // 100], 1) for q in (50, 99)}
    return {"requests": len(first), "lost": len(first) - len(done)} | (quantiles if done else {})


def decisions(logs: Path) -> list[str]:
    """The policy's lines, as the gateway logged them."""
    lines = logs.joinpath("gateway-0.log").read_text().splitlines()
    return [line for line in lines if "shoal.cluster.decisions" in line]


if __name__ == "__main__":
    main()
