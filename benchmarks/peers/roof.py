"""What the machine could do at best: a tiny probe, and the time that a workload needs at that.

python benchmarks/peers/roof.py [--device cpu|cuda] [--threads N]       prints the probe
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

HERE = Path(__file__).resolve().parent
ROUNDS = 7
PRODUCTS = 14 * 500_000
FLOATS = 1 << 28


@dataclass(frozen=True)
class Roof:
    """Bytes that memory gives in a second, and operations (a multiply-add is two)."""

    bytes_per_s: float
    flops_per_s: float


@dataclass(frozen=True)
class Shape:
    """What a token costs of a dense decoder in bfloat16.

    `weights`: parameters that a step reads, the head among them, the embedding table not.
    `layer_weights`: those that every prompt token is multiplied with. `kv_bytes`: of one token.
    `attention_flops`: of one token that looks at one other.
    """

    weights: int
    layer_weights: int
    kv_bytes: int
    attention_flops: int

    @classmethod
    def read(cls, folder: Path) -> Shape:
        """From a config.json."""
        c = json.loads((folder / "config.json").read_text())
        hidden, layers = c["hidden_size"], c["num_hidden_layers"]
        width = c["num_attention_heads"] * c["head_dim"]
        kv = c["num_key_value_heads"] * c["head_dim"]
        layer = hidden * (2 * width + 2 * kv + 3 * c["intermediate_size"])
        return cls(
            weights=layers * layer + hidden * c["vocab_size"],
            layer_weights=layers * layer,
            kv_bytes=layers * 2 * kv * 2,
            attention_flops=layers * 4 * width,
        )


@dataclass(frozen=True)
class Need:
    """Seconds at the roof: prompts, and decoding by memory and by arithmetic."""

    prefill_s: float
    decode_memory_s: float
    decode_flops_s: float

    @property
    def seconds(self) -> float:
        """All of it; a decode step is as slow as the slower of its two."""
        return self.prefill_s + max(self.decode_memory_s, self.decode_flops_s)

    @property
    def bound(self) -> str:
        """Which part takes most."""
        parts = {
            "arithmetic of prompts": self.prefill_s,
            "memory": self.decode_memory_s if self.decode_memory_s >= self.decode_flops_s else 0.0,
            "arithmetic of decoding": self.decode_flops_s
            if self.decode_flops_s > self.decode_memory_s
            else 0.0,
        }
        return max(parts, key=lambda name: parts[name])


def need(
    roof: Roof, shape: Shape, *, streams: int, input_len: int, shared: int, output_len: int
) -> Need:
    """The least time for `streams` prompts at once, whose first `shared` tokens are cached.

    The first output token falls to the prompt; each later one is a step of all streams together,
    which reads the weights once and what is cached of every stream.
    """
    fresh = input_len - shared
    pairs = fresh * (shared + input_len) / 2
    flops = 2 * shape.layer_weights * fresh + shape.attention_flops * pairs
    head = 2 * (shape.weights - shape.layer_weights)
    prefill = streams * (flops + head) / roof.flops_per_s
    steps = output_len - 1
    seen = steps * (input_len + output_len / 2)
    moved = steps * 2 * shape.weights + streams * seen * shape.kv_bytes
    counted = streams * (2 * shape.weights * steps + shape.attention_flops * seen)
    return Need(prefill, moved / roof.bytes_per_s, counted / roof.flops_per_s)


def probe(device: str, threads: int, dtype: str = "bfloat16") -> Roof:
    """The best of a few: a sum over 1 GiB of float32, and products of matrices in `dtype`.

    With AVX-512 also reading and multiplying by `benchmarks/roof.cpp`, where a compiler is at hand.
    """
    import torch

    if device == "cpu":
        torch.set_num_threads(threads)
    data = torch.ones(FLOATS, dtype=torch.float32, device=device)
    size = 2048 if device == "cpu" else 8192
    a = torch.randn(size, size, device=device).to(getattr(torch, dtype))
    wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)

    def best(work: Callable[[], object]) -> float:
        taken = []
        for _ in range(ROUNDS):
            begin = time.perf_counter()
            work()
            wait()
            taken.append(time.perf_counter() - begin)
        return min(taken)

    found = Roof(4 * data.numel() / best(data.sum), 2 * size**3 / best(lambda: a @ a))
    wide = device == "cpu" and "avx512f" in Path("/proc/cpuinfo").read_text()
    return _raised(found, threads, dtype, data) if wide and shutil.which("c++") else found


def _raised(found: Roof, threads: int, dtype: str, data: torch.Tensor) -> Roof:
    """The better of torch's figures and those of a compiled probe."""
    with tempfile.TemporaryDirectory() as folder:
        made, source = Path(folder, "roof.so"), HERE.parent / "roof.cpp"
        command = ["c++", "-O3", "-std=c++17", "-shared", "-fPIC", str(source), "-o", str(made)]
        subprocess.run([*command, "-lpthread"], check=True)
        run = ctypes.CDLL(str(made)).roof
    run.restype = ctypes.c_double
    run.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_int64)
    each = data.nbytes // threads // 128 * 128
    read_s = min(run(0, threads, data.data_ptr(), each) for _ in range(ROUNDS))
    dots = dtype == "bfloat16" and "avx512_bf16" in Path("/proc/cpuinfo").read_text()
    products_s = min(run(2 if dots else 1, threads, None, PRODUCTS) for _ in range(ROUNDS))
    flops = PRODUCTS * threads * (64 if dots else 32) / products_s
    return Roof(max(found.bytes_per_s, each * threads / read_s), max(found.flops_per_s, flops))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    asked = parser.parse_args()
    print(json.dumps(vars(probe(asked.device, asked.threads))))


if __name__ == "__main__":
    main()
