"""shoal beside its peers: the same checkpoint and prompts, each pair interleaved in one run.

    python benchmarks/peers/compare.py [PEER ..] [--quick] [--resume] [--device cuda] [--json FILE]

Each peer is installed in an environment of its own below --cache, where the checkpoint is made too.
A peer that has a server is compared with `shoal serve` over HTTP (with Ray), the others with
shoal's engine in process. Both are loaded; the one asked works while the other idles, or is
stopped where it would keep a core busy for nothing (vLLM). A cell is `streams` prompts at once,
greedy, `--output-len` tokens each whatever they are; it is warmed, then run on both sides in turn,
with new prompts each round. Medians of the rounds are kept, after every cell; `--resume` goes on
where a run ended. `--show` prints what was found.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
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
from sides import Side, started, stopped

HERE = Path(__file__).resolve().parent
MODULES = (peer_openvino, peer_llamacpp, peer_transformers, peer_vllm, peer_sglang)
PEERS: dict[str, Peer] = {module.PEER.name: module.PEER for module in MODULES}
WARM_TOKENS = 4
IDLE, SETTLE_S = 0.9, 20.0
"""How much of the processors must be idle before a run, and how long that is waited for."""
PORTS = (8961, 8962)


def main() -> None:
    asked = arguments()
    found = json.loads(asked.json.read_text()) if asked.json.exists() else {}
    if not asked.show:
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
        model = make(asked.shape, asked.cache / "models" / asked.shape.name)
        Comparison(asked, found, model).run()
    report(found)


@dataclass
class Comparison:
    """What was asked, the checkpoint, and what was found so far, which is kept after every cell."""

    asked: argparse.Namespace
    found: dict[str, Any]
    model: Path

    @property
    def shape(self) -> Path:
        """The folder of the model's configuration."""
        return Path(self.asked.shape)

    @cached_property
    def vocab_size(self) -> int:
        """Ids below it are known to the model."""
        return int(json.loads((self.shape / "config.json").read_text())["vocab_size"])

    def run(self) -> None:
        """Measure every peer asked for; one that cannot be is told of and left out."""
        asked = self.asked
        probe = [sys.executable, HERE / "roof.py", "--device", asked.device]
        probe += ["--threads", str(asked.threads)]
        self.found |= {"roof": json.loads(subprocess.check_output(probe)), **machine(asked)}
        peers = self.found.setdefault("peers", {})
        for name in asked.peers:
            kept = peers.get(name, {}) if asked.resume else {}
            entry = peers[name] = {"over": PEERS[name].over, "cells": []} | kept
            try:
                PEERS[name].check(asked.device)
                self.compare(PEERS[name], entry)
                entry["error"] = None
            except Refused as refused:
                entry["error"] = str(refused)
                say(f"{name}: {refused}")
            self.keep()

    def compare(self, peer: Peer, entry: dict[str, Any]) -> None:
        """All cells of one peer that are not there yet. Raises Refused."""
        asked = self.asked
        environment = Environment(asked.cache / peer.name, tuple(asked.pip_args.split()))
        if not asked.installed:
            say(f"{peer.name}: install")
            peer.install(environment, asked.device)
        entry["version"] = environment.version(peer.distribution)
        own = peer.convert(environment, self.model)
        known = [cell["cell"] for cell in entry["cells"]]
        left = [cell for cell in asked.cells if described(cell) not in known]
        groups = [[c for c in left if bool(c.shared) == shared] for shared in (False, True)]
        for cells in groups if peer.by_prefix else [left]:
            if cells:
                self.both(peer, environment, own, entry, cells)

    def both(
        self,
        peer: Peer,
        environment: Environment,
        own: Path,
        entry: dict[str, Any],
        cells: list[Cell],
    ) -> None:
        """Start both sides and measure cells. Raises Refused."""
        asked = self.asked
        theirs_launch = Launch(
            environment=environment,
            model=own,
            device=asked.device,
            threads=asked.threads,
            port=PORTS[0],
            max_streams=max(64, *(cell.streams for cell in cells)),
            prefix_caching=any(cell.shared for cell in cells) or not peer.by_prefix,
        )
        ours_launch = replace(theirs_launch, model=self.model, port=PORTS[1])
        shoal = commit()
        logs = asked.cache / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        say(f"{peer.name}: start")
        with (
            started(peer, theirs_launch, logs / f"{peer.name}.log") as (theirs, theirs_s),
            started(SIDES[peer.over], ours_launch, logs / "shoal.log") as (ours, ours_s),
        ):
            starts = entry.setdefault("starts_s", [])
            starts.append({"peer": round(theirs_s, 1), "shoal": round(ours_s, 1)})
            say(f"{peer.name}: ready after {theirs_s:.1f} s, shoal after {ours_s:.1f} s")
            for cell in cells:
                taken = self.pair({"shoal": ours, "peer": theirs}, cell, peer.spins)
                entry["cells"].append(self.with_roof(cell, taken) | {"commit": shoal})
                self.keep()
                mine, other = (taken[s]["output_tokens_per_s"] for s in ("shoal", "peer"))
                said = f"shoal {mine:.1f}, {peer.name} {other:.1f} tokens/s, {mine / other:.2f}"
                say(f"{peer.name}: {cell}: {said}")

    def pair(self, sides: dict[str, Side], cell: Cell, spins: bool) -> dict[str, Any]:
        """Warm both sides, then run them in turn, the order changing from round to round.

        A peer that `spins` is stopped while shoal is asked.
        """
        asked = self.asked
        for side in sides.values():
            side.run(cell.prompts(-1, self.vocab_size)[: cell.num_warm], WARM_TOKENS)
        rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
        idle = []
        begin = time.monotonic()
        for number in range(asked.rounds):
            for name in list(sides)[:: 1 if number % 2 == 0 else -1]:
                prompts = cell.prompts(number, self.vocab_size)
                with stopped(sides["peer"]) if spins else nullcontext():
                    idle.append(settled())
                with stopped(sides["peer"]) if spins and name == "shoal" else nullcontext():
                    arrivals = sides[name].run(prompts, cell.output_len)
                rounds[name].append(figures(arrivals, cell.output_len))
            if time.monotonic() - begin > asked.enough_s and number + 1 >= asked.least_rounds:
                break
        taken: dict[str, Any] = {name: middle(some) for name, some in rounds.items()}
        return taken | {"rounds": len(rounds["shoal"]), "idle_before": min(idle)}

    def with_roof(self, cell: Cell, taken: dict[str, Any]) -> dict[str, Any]:
        """A cell's figures, with the share of the roof that each side reached."""
        least = need(
            Roof(**self.found["roof"]),
            Shape.read(self.shape),
            streams=cell.streams,
            input_len=cell.input_len,
            shared=cell.shared,
            output_len=cell.output_len,
        )
        for name in ("shoal", "peer"):
            taken[name]["share_of_roof"] = least.seconds / taken[name]["duration_s"]
        return {
            "cell": described(cell),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "roof": self.found["roof"],
            "roof_s": least.seconds,
            "prefill_share_of_roof": least.prefill_s / least.seconds,
            "bound": least.bound,
            **taken,
        }

    def keep(self) -> None:
        """Write what was found so far."""
        partial = self.asked.json.with_suffix(".partial")
        partial.write_text(json.dumps(self.found, indent=1) + "\n")
        partial.replace(self.asked.json)


def kernels(asked: argparse.Namespace) -> str:
    """Which of shoal's kernels are used; without the native ones a CPU's figures say little."""
    if asked.device != "cpu":
        return "Triton"
    from shoal.kernels.cpu.bindings import absence, loaded

    if (native := loaded()) is not None:
        return f"native, {native.shoal_instructions().decode()}"
    say(f"shoal's native kernels are not used: {absence()}")
    return f"torch's ({absence()})"


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
        "kernels": kernels(asked),
    }


def commit() -> str:
    """Which shoal will be started, "dirty" where it was changed; empty outside of a checkout."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(HERE.parent.parent), *words]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--", "cluster", "engine", "kernels", "configs")
    return git("rev-parse", "--short", "HEAD") + ("-dirty" if changed else "")


def idle_share(seconds: float) -> float:
    """The share of the processors' time that nobody used, just now: others' work shows here."""

    def read() -> tuple[int, int]:
        line = Path("/proc/stat").read_text().split("\n", 1)[0]
        times = [int(word) for word in line.split()[1:9]]
        return times[3] + times[4], sum(times)

    idle, total = read()
    time.sleep(seconds)
    later_idle, later_total = read()
    return round((later_idle - idle) / max(1, later_total - total), 2)


def settled() -> float:
    """Wait for what a side still does after it was asked, as taking its memory: the other is not to
    bear it. The share of the processors that is idle then.
    """
    end = time.monotonic() + SETTLE_S
    while (share := idle_share(1.0)) < IDLE and time.monotonic() < end:
        pass
    return share


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
    parser.add_argument("--streams", type=numbers, metavar="N,..", help="1,8,32,64")
    parser.add_argument("--input-lens", type=numbers, metavar="N,..", help="128,1024")
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
    if asked.device == "cuda" and shutil.which("nvidia-smi") is None:
        parser.error("--device cuda needs an NVIDIA GPU, and there is no nvidia-smi here")
    if asked.quick:
        asked.streams, asked.input_lens = asked.streams or [1, 8, 32], asked.input_lens or [128]
        asked.no_shared, asked.least_rounds, asked.enough_s = True, 1, 15
    asked.streams = asked.streams or [1, 8, 32, 64]
    asked.input_lens = asked.input_lens or [128, 1024]
    asked.peers = asked.peers or [n for n, peer in PEERS.items() if asked.device in peer.devices]
    asked.json = asked.json or HERE.parent / "results" / f"peers-{asked.device}.json"
    asked.cells = grid(asked.streams, asked.input_lens, asked.output_len, not asked.no_shared)
    return asked


if __name__ == "__main__":
    main()
