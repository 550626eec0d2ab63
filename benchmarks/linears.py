"""Linears of a small model's shapes: the native CPU ops beside torch's, and the machine's limits.

    python benchmarks/linears.py [--threads 2] [--rows 1,8,32,128,512] [--rounds 9] [--json FILE]

Weights rotate over more than 300 MB, so that they come from memory as in a step. In every round
each way has its turn; the best few weights in a row count, since another program can only make them
slower. A share is of the limit that binds: the time to read the weights, or to multiply, whichever
is longer. Each limit is one of the run, the best that any probe beside any shape found: memory that
others use too is twice as fast at one moment as at another. So shares come last.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import harmonic_mean
from typing import Any

import torch
from shoal.kernels.cpu import build, panels
from shoal.kernels.cpu.bindings import Pool, absence, loaded
from shoal.kernels.cpu.structures import Epilogue, Extent, Kind, Linear, Sizes, Step, step
from torch import Tensor
from torch.nn import functional

# Qwen3-0.6B: inputs, outputs, and whether gate and up are in it.
SHAPES = {
    "qkv": (1024, 4096, False),
    "o": (2048, 1024, False),
    "gate_up": (1024, 6144, True),
    "down": (3072, 1024, False),
    "head": (1024, 151936, False),
}
ROTATED_BYTES = 320_000_000
SETTLE_S = 0.02
"""Until the threads of the way before have ceased to wait for more work in a loop."""
Way = Callable[[int, int], None]
"""Multiplies by so many weights, from the given one on."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rows", default="1,8,32,128,512")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument(
        "--instructions", help="avx2, avx512, avx512bf16 or amx instead of the best"
    )
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    native = loaded()
    if native is None:
        sys.exit(f"no native ops: {absence()}")
    if chosen.instructions and not native.shoal_choose(chosen.instructions.encode()):
        sys.exit(f"this processor has no {chosen.instructions}")
    torch.set_num_threads(chosen.threads)
    roof = Roof(chosen.threads)
    found: dict[str, Any] = {
        "command": sys.argv,
        "threads": chosen.threads,
        "instructions": native.shoal_instructions().decode(),
        "linears": [],
    }
    pool = Pool(chosen.threads)
    limits = Limits()
    print("shape     rows  native us  torch us  mkldnn us   GB/s  GFLOP/s")
    for shape in chosen.shapes.split(","):
        linears = Linears(pool, *SHAPES[shape])
        for rows in map(int, chosen.rows.split(",")):
            if shape == "head" and rows > 32:
                continue
            figures = measure(linears, roof, limits, rows, chosen.rounds)
            found["linears"].append({"shape": shape, "rows": rows, **figures})
            print(line(found["linears"][-1]), flush=True)
    pool.close()
    found |= asdict(limits)
    print(f"limits: {limits.read_gb_s:.1f} GB/s, {limits.multiply_gflop_s:.0f} GFLOP/s")
    for one in found["linears"]:
        one["share"] = limits.share(one)
        print(f"{one['shape']:8}  {one['rows']:4}  {one['share']:5.0%}")
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(found, indent=1) + "\n")


def line(figures: dict[str, Any]) -> str:
    return (
        f"{figures['shape']:8}  {figures['rows']:4}  {figures['native_us']:9.0f}  "
        f"{figures['torch_us']:8.0f}  {figures['mkldnn_us']:9.0f}  {figures['gb_s']:5.1f}  "
        f"{figures['gflop_s']:7.0f}"
    )


@dataclass
class Limits:
    """The most that any probe of the run has found."""

    read_gb_s: float = 0.0
    multiply_gflop_s: float = 0.0

    def probed(self, bytes_per_s: float, flop_per_s: float) -> None:
        """Take a probe in."""
        self.read_gb_s = max(self.read_gb_s, bytes_per_s / 1e9)
        self.multiply_gflop_s = max(self.multiply_gflop_s, flop_per_s / 1e9)

    def share(self, figures: dict[str, Any]) -> float:
        """Of the limit that binds."""
        read = figures["gb_s"] / self.read_gb_s
        return float(max(read, figures["gflop_s"] / self.multiply_gflop_s))


class Roof:
    """How fast memory is read and registers are multiplied, by a probe compiled for it."""

    def __init__(self, threads: int) -> None:
        source = Path(__file__).with_name("roof.cpp")
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder, "roof.so")
            command = [*build.compilers()[0], "-O3", "-std=c++17", "-shared", "-fPIC"]
            subprocess.run([*command, "-o", str(made), str(source), "-lpthread"], check=True)
            self._roof = ctypes.CDLL(str(made)).roof
        self._roof.restype = ctypes.c_double
        self._roof.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_int64)
        self._threads = threads
        self._dot = "avx512_bf16" in Path("/proc/cpuinfo").read_text()

    def read(self, data: Tensor) -> float:
        """Bytes a second."""
        each = data.nbytes // self._threads // 128 * 128
        return each * self._threads / self._roof(0, self._threads, data.data_ptr(), each)

    def multiply(self) -> float:
        """Operations a second, in the instruction that bfloat16 is multiplied with."""
        count = 14 * 500_000
        seconds = self._roof(2 if self._dot else 1, self._threads, None, count)
        return count * self._threads * (64 if self._dot else 32) / seconds


class Linears:
    """One shape's weights, often enough that none stays in a cache, in each way's own form."""

    def __init__(self, pool: Pool, inputs: int, outputs: int, gated: bool) -> None:
        self.pool, self.inputs, self.outputs, self.gated = pool, inputs, outputs, gated
        self.copies = max(2, ROTATED_BYTES // (inputs * outputs * 2))
        weight = (torch.randn(outputs, inputs) / inputs**0.5).bfloat16()
        self.plain = [weight.clone() for _ in range(self.copies)]
        self.packed = [panels.pack(pool, weight, paired=gated) for _ in range(self.copies)]
        reorder = torch.ops.mkldnn._reorder_linear_weight
        self.reordered = [reorder(weight, None) for _ in range(self.copies)]

    def native(self, x: Tensor) -> Way:
        columns = self.outputs // 2 if self.gated else self.outputs
        out = torch.empty(len(x), columns, dtype=torch.bfloat16)
        epilogue = Epilogue.SILU_MUL if self.gated else Epilogue.STORE
        args = [
            Linear(panels.matrix(x), panels.matrix(out), w.panels, None, Extent.TOKENS, epilogue)
            for w in self.packed
        ]
        sizes = Sizes(len(x), 0, 0)

        def run(first: int, count: int) -> None:
            some = (step(Kind.LINEAR, each) for each in args[first : first + count])
            assert self.pool.run((Step * count)(*some), sizes) == 0 and len(out) == len(x)

        return run

    def torch(self, x: Tensor) -> Way:
        return self._each(lambda w: functional.linear(x, w), self.plain)

    def mkldnn(self, x: Tensor) -> Way:
        linear = torch.ops.mkldnn._linear_pointwise
        return self._each(lambda w: linear(x, w, None, "none", [], ""), self.reordered)

    def _each(self, product: Callable[[Tensor], Tensor], weights: list[Tensor]) -> Way:
        def run(first: int, count: int) -> None:
            for weight in weights[first : first + count]:
                y = product(weight)
                if self.gated:
                    gate, up = y.chunk(2, 1)
                    functional.silu(gate).mul_(up)

        return run


def measure(
    linears: Linears, roof: Roof, limits: Limits, rows: int, rounds: int
) -> dict[str, float]:
    x = torch.randn(rows, linears.inputs).bfloat16()
    ways = {"native": linears.native(x), "torch": linears.torch(x), "mkldnn": linears.mkldnn(x)}
    best = dict.fromkeys(ways, float("inf"))
    turn = max(1, linears.copies // 8 // (1 + rows // 32))
    for _ in range(rounds):
        # The same memory, all of it: some of the last weights may still lie in a cache.
        read = harmonic_mean([roof.read(weight.data) for weight in linears.packed])
        limits.probed(read, roof.multiply())
        for name, way in ways.items():
            time.sleep(SETTLE_S)
            for first in range(0, linears.copies - turn + 1, turn):
                begun = time.perf_counter()
                way(first, turn)
                best[name] = min(best[name], (time.perf_counter() - begun) / turn)
    weights = linears.inputs * linears.outputs
    num_bytes, flop = linears.packed[0].data.nbytes, weights * 2 * rows
    return {
        **{f"{name}_us": seconds * 1e6 for name, seconds in best.items()},
        "gb_s": num_bytes / best["native"] / 1e9,
        "gflop_s": flop / best["native"] / 1e9,
    }


if __name__ == "__main__":
    with torch.inference_mode():
        main()
