"""What a start and an idle server take: `--local`, and Ray beside what Ray and Serve need.

    python benchmarks/start.py [MODEL] [--rounds 3] [--idle 30] [--json FILE] [-- serve flags]

Each round times, one after the other, from the start of a process: `shoal --help` to its end;
`shoal serve MODEL --local` and `shoal serve MODEL` to the first answer of `/health` that says
ready; and Ray and Serve, without a dashboard or a proxy, to the first answer of a deployment of
three lines: as they come, and as `shoal serve` starts them, without the servers that only a
dashboard and an autoscaler want. `shoal adds` is the difference within a round. The least and the
median of the rounds are printed, with the CPU of all its processes, which a busy machine changes
less than the wait, and the CPU that they take in `--idle` seconds afterwards.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
from pathlib import Path
from typing import NamedTuple

from shoal.cluster.direct import direct_opener
from shoal.cluster.launch import LEFT_OUT

BARE = """
import logging, os, ray
from ray import serve
from ray.serve.schema import LoggingConfig

ray.init(address="local", include_dashboard=False, object_store_memory=80 << 20,
         log_to_driver=False, logging_level=logging.ERROR, _node_ip_address="127.0.0.1")
quiet = LoggingConfig(enable_access_log=False, log_level="WARNING")
serve.start(proxy_location="Disabled", logging_config=quiet)

@serve.deployment
class Answer:
    def __call__(self):
        return 42

handle = serve.run(Answer.bind(), route_prefix=None, logging_config=quiet)
assert handle.remote().result() == 42
print("ready", flush=True)
input()
"""
STRIPPED = f"""
from ray._private.node import Node

for part in {LEFT_OUT}:
    setattr(Node, part, lambda node, **options: None)
"""
PROGRAMS = {"bare": BARE, "stripped": STRIPPED + BARE}
START_S = 300.0
SETTLE_S = 5.0
NAMES = {
    "help": "shoal --help",
    "local": "shoal serve --local, ready",
    "bare": "Ray, Serve and a deployment of three lines",
    "stripped": "the same as shoal starts them",
    "ray": "shoal serve, ready",
}
ADDS = {
    "adds": ("bare", "shoal adds to Ray and Serve"),
    "adds_stripped": ("stripped", "shoal adds to them as it starts them"),
}


def main() -> None:
    chosen = arguments()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    found: dict[str, list[Spent]] = {name: [] for name in NAMES}
    for number in range(chosen.rounds):
        print(f"round {number + 1}", file=sys.stderr)
        for name in NAMES:
            found[name].append(measure(name, chosen))
    for name, (base, _) in ADDS.items():
        pairs = zip(found["ray"], found[base], strict=True)
        found[name] = [Spent(*(a - b for a, b in zip(*pair, strict=True))) for pair in pairs]
    words_of = NAMES | {name: words for name, (_, words) in ADDS.items()}
    for name, words in words_of.items():
        waits, cpu, idle = zip(*found[name], strict=True)
        median = statistics.median
        print(
            f"{words:44} {min(waits):6.2f} s least {median(waits):6.2f} s median; "
            f"CPU {min(cpu):5.2f} s least {median(cpu):5.2f} s median; "
            f"idle {min(idle):6.2%} of a core least {median(idle):6.2%} median"
        )
    if chosen.json is not None:
        told = {name: [spent._asdict() for spent in spents] for name, spents in found.items()}
        chosen.json.write_text(json.dumps({"command": sys.argv, **told}, indent=1) + "\n")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", nargs="?", default="shoal-tiny")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--idle", type=float, default=30.0)
    parser.add_argument("--json", type=Path)
    words = sys.argv[1:]
    cut = words.index("--") if "--" in words else len(words)
    return parser.parse_args(words[:cut], argparse.Namespace(serve=words[cut + 1 :]))


class Spent(NamedTuple):
    """Seconds until it was ready, and the share of a core that it takes when nobody asks."""

    wait_s: float
    cpu_s: float
    idle: float


def measure(name: str, chosen: argparse.Namespace) -> Spent:
    """One start; nothing of it runs afterwards."""
    shoal = [sys.executable, "-m", "shoal"]
    begin = time.monotonic()
    if name == "help":
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([*shoal, "--help"], check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return Spent(time.monotonic() - begin, cpu_s, 0.0)
    if name in PROGRAMS:
        with subprocess.Popen(
            [sys.executable, "-c", PROGRAMS[name]], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            line = process.stdout.readline()
            wait_s = time.monotonic() - begin
            spent = Spent(wait_s, tree_cpu_s(process.pid), idle_share(process.pid, chosen.idle))
            process.communicate(b"\n")
        assert line == b"ready\n", "Ray did not start"
        return spent
    port = free_port()
    flags = ["--local"] if name == "local" else []
    command = [*shoal, "serve", chosen.model, "--port", str(port), *flags, *chosen.serve]
    quiet = subprocess.DEVNULL
    server = subprocess.Popen(command, stdout=quiet, stderr=quiet)
    try:
        wait_ready(f"http://127.0.0.1:{port}/health", server)
        wait_s = time.monotonic() - begin
        return Spent(wait_s, tree_cpu_s(server.pid), idle_share(server.pid, chosen.idle))
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(60)


def wait_ready(url: str, server: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        if server.poll() is not None:
            sys.exit(f"shoal serve ended with {server.returncode}")
        try:
            with direct_opener().open(url, timeout=1) as answer:
                if json.load(answer)["status"] == "ready":
                    return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            pass
        time.sleep(0.02)
    sys.exit(f"not ready after {START_S:g} s")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def idle_share(root: int, seconds: float) -> float:
    """Of a core, that a tree of processes takes while nobody asks it anything."""
    if not seconds:
        return 0.0
    time.sleep(SETTLE_S)
    before, begin = tree_cpu_s(root), time.monotonic()
    time.sleep(seconds)
    return (tree_cpu_s(root) - before) / (time.monotonic() - begin)


def tree_cpu_s(root: int) -> float:
    """CPU seconds of a process, those below it, and those that they waited for."""
    parent_of, ticks = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text()
        except OSError:
            continue  # it has just ended
        fields = text.rpartition(")")[2].split()
        parent_of[int(text.split()[0])] = int(fields[1])
        ticks[int(text.split()[0])] = sum(map(int, fields[11:15]))

    def below(pid: int) -> bool:
        while pid not in (0, root):
            pid = parent_of.get(pid, 0)
        return pid == root

    return sum(used for pid, used in ticks.items() if below(pid)) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    main()
