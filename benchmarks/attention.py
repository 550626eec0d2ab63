"""Paged attention of the native CPU library against torch's scaled_dot_product_attention.

    python benchmarks/attention.py [--threads N] [--rounds N]

Shapes of Qwen3-0.6B: 16 query heads, 8 key-value heads, head size 128, bfloat16, blocks of 32. Both
sides take turns in one process, the best of all rounds counts. Torch's side gets keys and values
that lie together already, which a paged cache would have to gather first. Between two calls of one
shape the sequences' pages change, so that a decode reads memory and not caches.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from shoal.kernels.cpu import memory
from shoal.kernels.cpu.bindings import Pool, loaded
from shoal.kernels.cpu.structures import Attend, Cache, Dtype, Kind, Matrix, Sizes, Step, step
from torch import Tensor

HEADS, KV_HEADS, SIZE, BLOCK = 16, 8, 128, 32
DECODES = ((1, 1024), (1, 4096), (8, 128), (8, 1024), (32, 128), (32, 1024))
PREFILLS = ((128, 128), (512, 512), (512, 1024), (512, 2048), (2048, 2048))
COPIES_BYTES = 256 << 20


@dataclass(slots=True, kw_only=True)
class Shape:
    """`streams` sequences with `queries` new tokens each, `keys` in all."""

    streams: int
    queries: int
    keys: int

    @property
    def kv_bytes(self) -> int:
        return self.streams * self.keys * KV_HEADS * SIZE * 4

    @property
    def flops(self) -> float:
        seen = self.queries * (self.keys - (self.queries - 1) / 2)
        return 4.0 * self.streams * seen * HEADS * SIZE


def ours(pool: Pool, shape: Shape, copies: int) -> Callable[[int], None]:
    per_sequence = -(-shape.keys // BLOCK)
    blocks = shape.streams * per_sequence
    kv = memory.empty((copies, 2, blocks, KV_HEADS, BLOCK * SIZE), torch.bfloat16)
    kv.copy_(torch.randn(kv.shape[1:]))
    table = torch.randperm(blocks).to(torch.int32).view(shape.streams, per_sequence)
    rows = shape.streams * shape.queries
    q = torch.randn(rows, HEADS * SIZE).bfloat16()
    out = torch.empty_like(q)
    starts = torch.arange(shape.streams + 1, dtype=torch.int32) * shape.queries
    lengths = torch.full((shape.streams,), shape.keys, dtype=torch.int32)
    kept = (kv, table, q, out, starts, lengths)
    steps, args = [], []
    for copy in kv:
        cache = Cache(copy.data_ptr(), blocks, BLOCK, KV_HEADS, SIZE, Dtype.BF16)
        args.append(
            Attend(
                Matrix(q.data_ptr(), HEADS * SIZE, Dtype.BF16),
                Matrix(out.data_ptr(), HEADS * SIZE, Dtype.BF16),
                cache,
                table.data_ptr(),
                per_sequence,
                starts.data_ptr(),
                lengths.data_ptr(),
                None,
                0,
                HEADS,
                SIZE,
                0,
                SIZE**-0.5,
                0.0,
            )
        )
        steps.append((Step * 1)(step(Kind.ATTEND, args[-1])))
    sizes = Sizes(rows, shape.streams, shape.streams)

    def run(turn: int, _kept: object = (kept, args)) -> None:
        assert pool.run(steps[turn % copies], sizes) == 0

    return run


def torchs(shape: Shape, copies: int) -> Callable[[int], None]:
    q = torch.randn(shape.streams, HEADS, shape.queries, SIZE).bfloat16()
    kv = torch.randn(copies, 2, shape.streams, KV_HEADS, shape.keys, SIZE).bfloat16()
    mask: Tensor | None = None
    square = shape.queries == shape.keys
    if shape.queries > 1 and not square:
        mask = torch.full((shape.queries, shape.keys), -torch.inf).bfloat16()
        mask = mask.triu(shape.keys - shape.queries + 1)

    def run(turn: int) -> None:
        k, v = kv[turn % copies]
        F.scaled_dot_product_attention(q, k, v, mask, is_causal=square, enable_gqa=True)

    return run


def best(sides: list[Callable[[int], None]], rounds: int) -> list[float]:
    """The least seconds of each side, taking turns."""
    least = [float("inf")] * len(sides)
    for turn in range(rounds):
        for index, side in enumerate(sides):
            began = time.perf_counter()
            side(turn)
            least[index] = min(least[index], time.perf_counter() - began)
    return least


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=60)
    options = parser.parse_args()
    native = loaded()
    assert native is not None, "the native library is not built: python kernels/cpu/build.py"
    torch.set_num_threads(options.threads)
    pool = Pool(options.threads)
    instructions = native.shoal_instructions().decode()
    print(f"{options.threads} threads, {instructions}, torch {torch.__version__}")
    print("| shape | ours ms | torch ms | ratio | ours |\n|---|---|---|---|---|")
    shapes = [Shape(streams=b, queries=1, keys=n) for b, n in DECODES]
    shapes += [Shape(streams=1, queries=m, keys=n) for m, n in PREFILLS]
    for shape in shapes:
        copies = max(1, COPIES_BYTES // shape.kv_bytes) if shape.queries == 1 else 1
        sides = [ours(pool, shape, min(copies, 16)), torchs(shape, min(copies, 16))]
        mine, other = best(sides, options.rounds)
        decode = shape.queries == 1
        name = (
            f"decode {shape.streams}x{shape.keys}"
            if decode
            else f"prefill {shape.queries}x{shape.keys}"
        )
        rate = (
            f"{shape.kv_bytes / mine / 1e9:.1f} GB/s"
            if decode
            else f"{shape.flops / mine / 1e9:.0f} GFLOP/s"
        )
        print(
            f"| {name} | {mine * 1e3:.2f} | {other * 1e3:.2f} | {other / mine:.2f} | {rate} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
