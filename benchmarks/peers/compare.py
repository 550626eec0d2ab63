"""shoal beside its peers: the same checkpoint and prompts, each pair interleaved in one run.

    python benchmarks/peers/compare.py [PEER ..] [--quick] [--resume] [--device cuda] [--json FILE]

Each peer is installed in an environment of its own below --cache, where the checkpoint is made too.
A peer that has a server is compared with `shoal serve` over HTTP (with Ray), the others with
shoal's engine in process. Both are loaded; the one asked works while the other idles. A cell is
`streams` prompts at once, greedy, `--output-len` tokens each whatever they are; it is warmed, then
run on both sides in turn, with new prompts each round. Medians of the rounds are kept, after every
cell; `--resume` goes on where a run ended. `--show` prints what was found.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import peer_llamacpp
import peer_openvino
import peer_sglang
import peer_transformers
import peer_vllm
from cells import Cell, described, figures, grid, middle
from checkpoint import make
from contract import Environment, Launch, Peer, Refused
from peer_shoal import SIDES
from report import report
from roof import Roof, Shape, need
from sides import Side, started

HERE = Path(__file__).resolve().parent
MODULES = (peer_openvino, peer_llamacpp, peer_transformers, peer_vllm, peer_sglang)
PEERS: dict[str, Peer] = {module.PEER.name: module.PEER for module in MODULES}
WARM_TOKENS = 4
PORTS = (8961, 8962)


def main() -> None:
    asked = arguments()
    found = json.loads(asked.json.read_text()) if asked.json.exists() else {}
    if not asked.show:
        found = measured(asked, found)
    report(found)


def measured(asked: argparse.Namespace, found: dict[str, Any]) -> dict[str, Any]:
    """Measure every peer asked for; a peer that cannot be is told of and left out."""
    model = make(asked.shape, asked.cache / "models" / asked.shape.name)
    probe = [sys.executable, HERE / "roof.py", "--device", asked.device]
    probe += ["--threads", str(asked.threads)]
    found = {"peers": {}, **found, **machine(asked)}
    found["roof"] = json.loads(subprocess.check_output(probe))
    for name in asked.peers:
        peer = PEERS[name]
        kept = found["peers"].get(name, {}) if asked.resume else {}
        entry = found["peers"][name] = {"over": peer.over, "cells": [], "error": None} | kept
        try:
            peer.check(asked.device)
            compare(peer, model, asked, found, entry)
            entry["error"] = None
        except Refused as refused:
            entry["error"] = str(refused)
            print(f"{name}: {refused}", file=sys.stderr)
        keep(asked, found)
    return found


def machine(asked: argparse.Namespace) -> dict[str, Any]:
    """What the figures belong to."""
    said = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.partition(":")[2].strip() for line in said if "model name" in line), "")
    return {
        "command": " ".join(["python", "benchmarks/peers/compare.py", *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{cpu or platform.machine()}, {asked.threads} threads, {asked.device}",
        "shape": asked.shape.name,
        "dtype": "bfloat16",
    }


def compare(
    peer: Peer, model: Path, asked: argparse.Namespace, found: dict[str, Any], entry: dict[str, Any]
) -> None:
    """All cells of one peer. Raises Refused."""
    environment = Environment(asked.cache / peer.name, tuple(asked.pip_args.split()))
    if not asked.installed:
        say(f"{peer.name}: install")
        peer.install(environment, asked.device)
    entry["version"] = environment.version(peer.distribution)
    own = peer.convert(environment, model)
    known = [cell["cell"] for cell in entry["cells"]]
    left = [cell for cell in asked.cells if described(cell) not in known]
    groups = [[c for c in left if bool(c.shared) == shared] for shared in (False, True)]
    for cells in [left] if not peer.by_prefix else groups:
        if cells:
            both(peer, own, model, environment, asked, found, entry, cells)


def both(
    peer: Peer,
    own: Path,
    model: Path,
    environment: Environment,
    asked: argparse.Namespace,
    found: dict[str, Any],
    entry: dict[str, Any],
    cells: list[Cell],
) -> None:
    """Start both sides and measure cells. Raises Refused."""

    def launch(path: Path, port: int) -> Launch:
        return Launch(
            environment=environment,
            model=path,
            device=asked.device,
            threads=asked.threads,
            port=port,
            max_streams=max(64, *(cell.streams for cell in cells)),
            prefix_caching=any(cell.shared for cell in cells) or not peer.by_prefix,
        )

    logs = asked.cache / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    say(f"{peer.name}: start")
    with (
        started(peer, launch(own, PORTS[0]), logs / f"{peer.name}.log") as (theirs, theirs_s),
        started(SIDES[peer.over], launch(model, PORTS[1]), logs / "shoal.log") as (ours, ours_s),
    ):
        entry["start_s"] = {"peer": round(theirs_s, 1), "shoal": round(ours_s, 1)}
        say(f"{peer.name}: ready after {theirs_s:.1f} s, shoal after {ours_s:.1f} s")
        for cell in cells:
            taken = pair({"shoal": ours, "peer": theirs}, cell, asked)
            entry["cells"].append(described_with_roof(cell, taken, asked, found))
            keep(asked, found)
            ratio = taken["shoal"]["output_tokens_per_s"] / taken["peer"]["output_tokens_per_s"]
            say(
                f"{peer.name}: {cell}: shoal {taken['shoal']['output_tokens_per_s']:.1f}, "
                f"{peer.name} {taken['peer']['output_tokens_per_s']:.1f} tokens/s, {ratio:.2f}"
            )


def pair(sides: dict[str, Side], cell: Cell, asked: argparse.Namespace) -> dict[str, Any]:
    """Warm both sides, then run them in turn, the order changing from round to round."""
    size = Shape.read(asked.shape), json.loads((asked.shape / "config.json").read_text())
    vocab_size = size[1]["vocab_size"]
    for side in sides.values():
        side.run(cell.prompts(-1, vocab_size), WARM_TOKENS)
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    idle = []
    begin = time.monotonic()
    for number in range(asked.rounds):
        names = list(sides)[:: 1 if number % 2 == 0 else -1]
        for name in names:
            idle.append(idle_share())
            arrivals = sides[name].run(cell.prompts(number, vocab_size), cell.output_len)
            rounds[name].append(figures(arrivals, cell.output_len))
        if time.monotonic() - begin > asked.enough_s and number + 1 >= asked.least_rounds:
            break
    taken: dict[str, Any] = {name: middle(some) for name, some in rounds.items()}
    return taken | {"rounds": len(rounds["shoal"]), "idle_before": min(idle)}


def idle_share(seconds: float = 0.3) -> float:
    """The share of the processors' time that nobody used, just now: others' work shows here."""

    def read() -> tuple[int, int]:
        line = Path("/proc/stat").read_text().split("\n", 1)[0]
        times = [int(word) for word in line.split()[1:9]]
        return times[3] + times[4], sum(times)

    idle, total = read()
    time.sleep(seconds)
    later_idle, later_total = read()
    return round((later_idle - idle) / max(1, later_total - total), 2)


def described_with_roof(
    cell: Cell, taken: dict[str, Any], asked: argparse.Namespace, found: dict[str, Any]
) -> dict[str, Any]:
    """The cell's figures, with the share of the roof that each side reached."""
    least = need(
        Roof(**found["roof"]),
        Shape.read(asked.shape),
        streams=cell.streams,
        input_len=cell.input_len,
        shared=cell.shared,
        output_len=cell.output_len,
    )
    for name in ("shoal", "peer"):
        taken[name]["share_of_roof"] = least.seconds / taken[name]["duration_s"]
    return {
        "cell": described(cell),
        "roof_s": least.seconds,
        "prefill_share_of_roof": least.prefill_s / least.seconds,
        "bound": least.bound,
        **taken,
    }


def keep(asked: argparse.Namespace, found: dict[str, Any]) -> None:
    """Write what was found so far."""
    partial = asked.json.with_suffix(".partial")
    partial.write_text(json.dumps(found, indent=1) + "\n")
    partial.replace(asked.json)


def say(line: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {line}", file=sys.stderr, flush=True)


def numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def arguments() -> argparse.Namespace:
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "shoal" / "peers"
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("peers", nargs="*", metavar="PEER", help=f"of {', '.join(PEERS)}")
    parser.add_argument("--quick", action="store_true", help="1, 8 and 32 streams of 128, brief")
    parser.add_argument("--streams", type=numbers, default=[1, 8, 32, 64], metavar="N,..")
    parser.add_argument("--input-lens", type=numbers, default=[128, 1024], metavar="N,..")
    parser.add_argument("--output-len", type=int, default=64, metavar="N")
    parser.add_argument("--no-shared", action="store_true", help="no cells with a shared prefix")
    parser.add_argument("--rounds", type=int, default=3, help="rounds a cell at most")
    parser.add_argument("--least-rounds", type=int, default=2, help="rounds a cell at least")
    parser.add_argument("--enough-s", type=float, default=60, help="seconds that do for a cell")
    parser.add_argument("--shape", type=Path, default=HERE.parent / "shapes" / "qwen3-0.6b")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--cache", type=Path, default=cache, help="environments and checkpoints")
    parser.add_argument("--pip-args", default="", help="more words for pip, as an index of torch")
    parser.add_argument("--installed", action="store_true", help="do not call pip")
    parser.add_argument("--resume", action="store_true", help="keep the cells that FILE has")
    parser.add_argument("--show", action="store_true", help="print what FILE has")
    parser.add_argument("--json", type=Path, metavar="FILE")
    asked = parser.parse_args()
    if unknown := [name for name in asked.peers if name not in PEERS]:
        parser.error(f"unknown peer {unknown[0]!r}; there are {', '.join(PEERS)}")
    if asked.quick:
        asked.streams, asked.input_lens, asked.no_shared = [1, 8, 32], [128], True
        asked.least_rounds, asked.enough_s = 1, 25
    asked.peers = asked.peers or [n for n, peer in PEERS.items() if asked.device in peer.devices]
    asked.json = asked.json or HERE.parent / "results" / f"peers-{asked.device}.json"
    asked.cells = grid(asked.streams, asked.input_lens, asked.output_len, not asked.no_shared)
    return asked


if __name__ == "__main__":
    main()
