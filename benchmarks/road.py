"""The road round the engine: start-up, throughput and latency, with Ray and without, side by side,
and how much of the throughput of the engine alone is left.

    python benchmarks/road.py [MODEL] [--streams 1,8,32] [--rounds 2] [--json FILE] [-- FLAG ..]

Each round runs the engine alone (`shoal bench throughput`, as many sequences at once as there are
streams), then serves the model once with `--local` and once through Ray, on a port of its own, asks
for one token, and runs `shoal bench serve`, with as many requests and warm-ups. Every second round
runs backwards. Flags are the engine's. Medians over the rounds are printed, what Ray adds, and the
rows of the README's table.
"""

from __future__ import annotations

import argparse
import json
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shoal.cluster.direct import direct_opener

ROADS = {"local": ["--local"], "ray": []}
START_S = 300.0
ROUNDS_OF, MOST_STREAMS, MOST_WARMUPS = 4, 64, 8
"""Requests a stream, of how many streams, and how many before them that do not count: those of
`shoal bench serve`, which the engine alone is to have, too."""


def main() -> None:
    chosen = arguments()
    found: dict[str, list[dict[str, Any]]] = {road: [] for road in ROADS}
    alone: dict[int, list[float]] = {streams: [] for streams in chosen.streams}
    for number in range(chosen.rounds):
        for turn in [*alone, *ROADS][:: 1 if number % 2 == 0 else -1]:
            print(f"round {number + 1}, {turn}", file=sys.stderr)
            if isinstance(turn, int):
                alone[turn].append(offline(chosen, turn))
            else:
                found[turn].append(measure(chosen, ROADS[turn]))
    medians = {road: median(runs) for road, runs in found.items()}
    engine = {streams: statistics.median(taken) for streams, taken in alone.items()}
    whole = {"command": sys.argv, "engine_tokens_per_s": engine, **medians}
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(whole, indent=1) + "\n")
    report(medians, engine)
    print("\n".join(rows(whole)))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", nargs="?", default="shoal-tiny")
    parser.add_argument("--streams", type=numbers, default="1,8,32", metavar="N,..")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--input-len", default="128")
    parser.add_argument("--output-len", default="64")
    parser.add_argument("--json", type=Path)
    words = sys.argv[1:]
    cut = words.index("--") if "--" in words else len(words)
    return parser.parse_args(words[:cut], argparse.Namespace(serve=words[cut + 1 :]))


def numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def offline(chosen: argparse.Namespace, streams: int) -> float:
    """Output tokens a second of the engine without a server, prefill counted."""
    command = [sys.executable, "-m", "shoal", "bench", "throughput", chosen.model, *chosen.serve]
    num_prompts = ROUNDS_OF * min(max(streams, 2), MOST_STREAMS)
    command += ["--max-num-seqs", str(streams), "--num-prompts", str(num_prompts)]
    command += ["--num-warmups", str(min(streams, MOST_WARMUPS))]
    command += ["--input-len", chosen.input_len, "--output-len", chosen.output_len]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "figures.json"
        command += ["--temperature", "0", "--disable-tqdm", "--output-json", str(file)]
        if code := subprocess.run(command, stdout=subprocess.DEVNULL).returncode:
            sys.exit(code)
        return float(json.loads(file.read_text())["output_tokens_per_second"])


def measure(chosen: argparse.Namespace, flags: list[str]) -> dict[str, Any]:
    """One server's life: seconds to ready and to the first token, then the figures by level."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    begin = time.monotonic()
    command = [sys.executable, "-m", "shoal", "serve", chosen.model, "--port", str(port)]
    server = subprocess.Popen([*command, *flags, *chosen.serve], stdout=subprocess.DEVNULL)
    try:
        wait_ready(url, server)
        ready_s = time.monotonic() - begin
        body = {"prompt": [20], "max_tokens": 1, "ignore_eos": True}
        request = urllib.request.Request(f"{url}/v1/completions", json.dumps(body).encode())
        direct_opener().open(request, timeout=60).read()
        first_s = time.monotonic() - begin
        return {"ready_s": ready_s, "first_token_s": first_s, "levels": bench(chosen, url)}
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(60)


def wait_ready(url: str, server: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        if server.poll() is not None:
            sys.exit(f"shoal serve ended with {server.returncode}")
        try:
            direct_opener().open(f"{url}/health", timeout=1).read()
            return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(0.05)
    sys.exit(f"not ready after {START_S:g} s")


def bench(chosen: argparse.Namespace, url: str) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "figures.json"
        command = [sys.executable, "-m", "shoal", "bench", "serve", "--url", url]
        command += ["--max-concurrency", ",".join(map(str, chosen.streams)), "--json", str(file)]
        command += ["--input-len", chosen.input_len, "--output-len", chosen.output_len]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        levels: list[dict[str, Any]] = json.loads(file.read_text())["levels"]
        return levels


def median(runs: list[dict[str, Any]]) -> dict[str, Any]:
    levels = []
    for same in zip(*(run["levels"] for run in runs), strict=True):
        level = {"streams": same[0]["max_concurrency"], "failed": sum(r["failed"] for r in same)}
        level["tokens_per_s"] = statistics.median(r["output_tokens_per_s"] for r in same)
        for name in ("ttft_ms", "tpot_ms", "itl_ms"):
            for part in ("p50", "p99"):
                level[f"{name}_{part}"] = statistics.median(r[name][part] for r in same)
        levels.append(level)
    starts = {k: statistics.median(run[k] for run in runs) for k in ("ready_s", "first_token_s")}
    return {**starts, "levels": levels}


def report(medians: dict[str, dict[str, Any]], engine: dict[int, float]) -> None:
    for road, found in medians.items():
        print(f"{road}: ready after {found['ready_s']:.1f} s, ", end="")
        print(f"first token after {found['first_token_s']:.1f} s")
    print("streams  road   tokens/s  TTFT p50/p99 ms    a token p50/p99 ms  between p99 ms  failed")
    for levels in zip(*(found["levels"] for found in medians.values()), strict=True):
        for road, level in zip(medians, levels, strict=True):
            ttft = f"{shown(level['ttft_ms_p50'], 1)} / {shown(level['ttft_ms_p99'], 1)}"
            tpot = f"{shown(level['tpot_ms_p50'], 2)} / {shown(level['tpot_ms_p99'], 2)}"
            print(
                f"{level['streams']:7}  {road:5}  {shown(level['tokens_per_s'], 1):>8}  {ttft:17}  "
                f"{tpot:18}  {shown(level['itl_ms_p99'], 1):>14}  {level['failed']:6}"
            )
        local, ray = levels
        first, each = (
            shown(None if None in (ray[name], local[name]) else ray[name] - local[name], 2)
            for name in ("ttft_ms_p50", "tpot_ms_p50")
        )
        alone = engine[local["streams"]]
        left = [level["tokens_per_s"] / alone for level in (local, ray)]
        print(f"         Ray adds {first} ms to the first token, {each} ms a token (medians)")
        print(
            f"         the engine alone makes {alone:.1f} tokens/s; "
            f"{left[0]:.0%} of it are left with --local, {left[1]:.0%} through Ray"
        )


def rows(whole: dict[str, Any]) -> list[str]:
    """Rows of a table of both roads, with and without Ray, from what the JSON holds."""
    roads = [whole[road] for road in ROADS]
    alone = [*whole["engine_tokens_per_s"].values()]
    num_streams = " / ".join(str(level["streams"]) for level in roads[0]["levels"])

    def row(words: str, of_a_road: Callable[[dict[str, Any]], str]) -> str:
        return f"| {words} | {' | '.join(map(of_a_road, roads))} |"

    def each(name: str) -> Callable[[dict[str, Any]], str]:
        return lambda road: " / ".join(significant(level[name]) for level in road["levels"])

    def left(road: dict[str, Any]) -> str:
        pairs = zip(road["levels"], alone, strict=True)
        return " / ".join(f"{level['tokens_per_s'] / most:.0%}" for level, most in pairs)

    makes = " / ".join(map(significant, alone))
    return [
        row("seconds from the command to ready", lambda road: f"{road['ready_s']:.1f}"),
        row(
            f"output tokens/s at {num_streams} streams; the engine alone makes {makes}",
            each("tokens_per_s"),
        ),
        row("share of the engine alone", left),
        row("time to first token, p50, ms", each("ttft_ms_p50")),
        row("time a token, p50, ms", each("tpot_ms_p50")),
    ]


def significant(value: float | None) -> str:
    """A figure with three digits at least."""
    if value is None:
        return "-"
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


def shown(value: float | None, digits: int) -> str:
    """A figure, or a dash where tokens had no text, so that no client saw them come."""
    return "-" if value is None else f"{value:.{digits}f}"


if __name__ == "__main__":
    main()
