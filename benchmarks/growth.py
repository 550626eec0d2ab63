"""What a token costs as the batch, the context, the replicas and the waiting queue grow.

    python benchmarks/growth.py [PART ..] [--model shoal-tiny] [--results benchmarks/results]

Parts: batch and context (the engine in process: milliseconds of the machine a token), host (the
scheduler and KV books alone, by rows and by waiting requests: microseconds), replicas (through Ray
and HTTP, 16 streams: processor time a token of every process of the server). Writes growth.json,
whose other parts stay, and growth.html, the same as plots.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import books
from shoal.cluster.bench.lengths import Lengths
from shoal.cluster.bench.plots import Chart, Series, page
from shoal.cluster.client import Client, ClientError

ROUNDS = 3
OUTPUT_LEN = 64
BATCHES = (1, 2, 4, 8, 16, 32, 64)
CONTEXTS = (64, 256, 1024, 2048, 3584)
CONTEXT_BATCH = 8
ROWS = (1, 4, 16, 64, 256)
WAITING = (0, 10, 100, 1_000, 10_000)
WAITING_ROWS = 32
REPLICAS = (1, 2, 4)
STREAMS = 16
START_S = 300.0


def best(work: Callable[[], float]) -> float:
    """The least of a few."""
    return min(work() for _ in range(ROUNDS))


def engine_parts(model: str, parts: list[str]) -> dict[str, Any]:
    """Milliseconds a token by batch, and of decoding by context."""
    from shoal import LLM, SamplingParams
    from shoal.cluster.config import bundled_model

    found: dict[str, Any] = {}
    folder = str(bundled_model()) if model == "shoal-tiny" else model
    with LLM(folder, max_num_seqs=max(BATCHES)) as llm:
        random = Random(0)

        def timed(num: int, length: int, output_len: int, prompts: Any = None) -> float:
            prompts = prompts or drawn(num, length)
            params = SamplingParams(temperature=0.0, max_tokens=output_len, ignore_eos=True)
            begin = time.perf_counter()
            llm.generate(prompts, params, use_tqdm=False)
            return time.perf_counter() - begin

        def drawn(num: int, length: int) -> list[list[int]]:
            size = llm.capacity.vocab_size
            return [[random.randrange(16, size) for _ in range(length)] for _ in range(num)]

        if "batch" in parts:
            found["batch"] = [
                (num, 1000 * best(lambda n=num: timed(n, 32, OUTPUT_LEN)) / num / OUTPUT_LEN)
                for num in BATCHES
            ]
        if "context" in parts:
            found["context"] = []
            for length in CONTEXTS:
                prompts = drawn(CONTEXT_BATCH, length)
                timed(0, 0, 1, prompts)  # from here on the prompts are cached
                whole = best(lambda p=prompts: timed(0, 0, OUTPUT_LEN + 1, p))
                first = best(lambda p=prompts: timed(0, 0, 1, p))
                cost = 1000 * (whole - first) / CONTEXT_BATCH / OUTPUT_LEN
                found["context"].append((length, cost))
    return found


def host_part() -> dict[str, Any]:
    """Microseconds of a step of decoding in the scheduler, by rows and by waiting requests."""
    return {
        "rows": [(rows, step_us(rows, 0)) for rows in ROWS],
        "waiting": [(num, step_us(WAITING_ROWS, num)) for num in WAITING],
    }


def step_us(rows: int, waiting: int, steps: int = 60) -> float:
    """The median microseconds of schedule and commit."""
    own = books.scheduler(rows * 512, 32, max_num_seqs=rows)
    books.add(own, [Lengths(64, 400)] * (rows + waiting))
    taken = []
    while len(taken) < steps:
        begin = time.perf_counter()
        plan = own.schedule()
        middle = time.perf_counter()
        assert plan is not None
        made = books.result(plan)
        after = time.perf_counter()
        own.commit(made)
        if len(plan.rows) == rows == sum(row.num_tokens for row in plan.rows):
            taken.append(1e6 * (middle - begin + time.perf_counter() - after))
    return statistics.median(taken)


def replicas_part(model: str) -> dict[str, Any]:
    """Processor milliseconds a token of the whole server, and tokens a second, by replicas."""
    found: dict[str, Any] = {"replicas": [], "replicas_tokens_per_s": []}
    for num in REPLICAS:
        cost, speed = served(model, num)
        found["replicas"].append((num, cost))
        found["replicas_tokens_per_s"].append((num, speed))
    return found


def served(model: str, replicas: int) -> tuple[float, float]:
    """One server's life: its processor milliseconds a token under load, and tokens a second."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "shoal", "serve", model, "--port", str(port)]
    command += ["--replicas", str(replicas), "--threads", "1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        wait_ready(port, process)
        run(port, 1)
        before = cpu_s(process.pid)
        figures = run(port, 8)
        spent = cpu_s(process.pid) - before
        return 1000 * spent / figures["output_tokens"], figures["output_tokens_per_s"]
    finally:
        process.terminate()
        process.wait(60)


def run(port: int, rounds: int) -> dict[str, Any]:
    """The figures of `shoal bench serve`."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "figures.json"
        command = [sys.executable, "-m", "shoal", "bench", "serve", "--port", str(port)]
        command += ["--max-concurrency", str(STREAMS), "--num-prompts", str(STREAMS * rounds)]
        command += ["--num-warmups", "0", "--json", str(file)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        (level,) = json.loads(file.read_text())["levels"]
        return dict(level)


def wait_ready(port: int, process: subprocess.Popen[bytes]) -> None:
    """Return once every replica is there."""
    client = Client(f"http://127.0.0.1:{port}")
    until = time.monotonic() + START_S
    while time.monotonic() < until and process.poll() is None:
        try:
            if client.call("/health").get("status") == "ready":
                return
        except ClientError:
            pass
        time.sleep(0.2)
    sys.exit("the server did not become ready")


def cpu_s(pid: int) -> float:
    """Processor seconds that a process and all below it have spent."""
    parents: dict[int, int] = {}
    spent: dict[int, int] = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            fields = (place / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(place.name)] = int(fields[1])
        spent[int(place.name)] = sum(map(int, fields[11:13]))

    def below(one: int) -> bool:
        while one != pid and one in parents:
            one = parents[one]
        return one == pid

    ticks = sum(time for one, time in spent.items() if below(one))
    return ticks / os.sysconf("SC_CLK_TCK")


CHARTS = (
    ("batch", "A token by batch, prompt 32 counted", "sequences at once", "ms of the machine"),
    ("context", f"A decoded token by context, batch {CONTEXT_BATCH}", "tokens before", "ms"),
    ("rows", "A step of the scheduler by rows", "running sequences", "microseconds"),
    (
        "waiting",
        f"A step of the scheduler by waiting requests, {WAITING_ROWS} rows",
        "waiting requests",
        "microseconds",
    ),
    ("replicas", f"A token by replicas, {STREAMS} streams", "replicas", "ms of processors"),
    ("replicas_tokens_per_s", "Throughput by replicas", "replicas", "tokens/s"),
)


def drawn(found: dict[str, Any]) -> str:
    """The page."""
    charts = []
    for key, title, x, y in CHARTS:
        if points := found.get(key):
            log = key in ("batch", "context", "rows")
            line = [Series("", [(a or 1, b) for a, b in points])]
            chart = Chart(title=title, x=x, y=y, series=line, log_x=log or key == "waiting")
            charts.append(chart.figure())
    if rows := found.get("rows"):
        line = [Series("", [(num, cost / num) for num, cost in rows])]
        title, y = "A token's share of the scheduler by rows", "microseconds a token"
        charts.append(
            Chart(title=title, x="running sequences", y=y, series=line, log_x=True).figure()
        )
    body = [
        "<h1>What a token costs as things grow</h1>",
        f'<p class="note">{found["machine"]}, {found["model"]}</p>',
        f'<p class="note"><code>{found["command"]}</code></p>',
        '<div class="charts">',
        *charts,
        "</div>",
    ]
    return page("What a token costs", body, json.dumps(found))


def main() -> None:
    known = ["batch", "context", "host", "replicas"]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(known))
    parser.add_argument("--model", default="shoal-tiny", help="shoal-tiny or a folder")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    asked = parser.parse_args()
    if unknown := [part for part in asked.parts if part not in known]:
        parser.error(f"unknown part {unknown[0]!r}; there are {', '.join(known)}")
    parts = asked.parts or known
    file = asked.results / "growth.json"
    found = json.loads(file.read_text()) if file.exists() else {}
    found["command"] = " ".join(["python", "benchmarks/growth.py", *sys.argv[1:]])
    found["machine"] = f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores"
    found["model"] = asked.model
    if {"batch", "context"} & set(parts):
        found |= engine_parts(asked.model, parts)
    if "host" in parts:
        found |= host_part()
    if "replicas" in parts:
        found |= replicas_part(asked.model)
    file.write_text(json.dumps(found, indent=1) + "\n")
    (asked.results / "growth.html").write_text(drawn(found))
    for key, title, x, y in CHARTS:
        if points := found.get(key):
            told = ", ".join(f"{a:,}: {b:.4g}" for a, b in points)
            print(f"{title} ({x}; {y}): {told}")


if __name__ == "__main__":
    main()
