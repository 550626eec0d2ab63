"""Norm, rope and KV write in one op: the bits of the ops one by one."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from shoal.kernels import ops
from shoal.kernels.cpu import passes
from shoal.kernels.cpu.backend import page_columns
from shoal.kernels.cpu.bindings import Pool
from shoal.kernels.cpu.recorder import Recorder, Rows
from shoal.kernels.cpu.structures import Kind
from shoal.kernels.cpu.tape import Counts, Tape
from torch import Tensor

from .steps import draw

COUNTS = {Rows.TOKENS: 7, Rows.WANTED: 5, Rows.SEQUENCES: 2, Rows.STARTS: 3}
MOST = 40
BLOCK = 32


@dataclass(slots=True, kw_only=True)
class Heads:
    """What stands between the product of queries, keys and values, and attention."""

    queries: int
    keys: int
    size: int
    turned: int
    dtype: torch.dtype
    normed: bool

    def forward(self, x: Tensor, positions: Tensor, slots: Tensor, kv: Tensor) -> Tensor:
        """The queries for attention, once keys and values are stored."""
        heads = x.view(len(x), -1, self.size)
        q, k, v = heads.split((self.queries, self.keys, self.keys), dim=1)
        inv_freq = 1e4 ** -(torch.arange(0, self.turned, 2) / self.turned)
        angles = ops.rope_angles(positions, inv_freq, 1.3, self.dtype)
        if self.normed:
            q = ops.rms_norm(q, draw(self.size, dtype=self.dtype), 1e-6)
            k = ops.rms_norm(k, draw(self.size, dtype=self.dtype, seed=1), 1e-6)
            ops.rope(q, *angles)
            ops.rope(k, *angles)
        else:
            ops.rope(heads[:, : self.queries + self.keys], *angles)
        ops.store_kv(k, v, kv, slots)
        return q

    def cache(self) -> Tensor:
        columns = page_columns(self.dtype, self.size, BLOCK)
        return torch.full((2, 3, BLOCK, self.keys, columns), torch.nan, dtype=self.dtype)

    def tape(self, x: Tensor, positions: Tensor, slots: Tensor, kv: Tensor) -> Tape:
        recorder = Recorder(COUNTS, lambda: "heads")
        given = [recorder.given(each, Rows.TOKENS) for each in (x, positions, slots)]
        with recorder.recording():
            q = self.forward(*given, kv)
        return Tape(recorder.lines, recorder.view(q), Counts(MOST, MOST, 4))


SHAPES = {
    "grouped": (16, 8, 128, 128),
    "one key": (7, 1, 64, 64),
    "partial": (4, 2, 96, 32),
    "odd partial": (3, 3, 80, 26),
    "small": (4, 4, 16, 16),
    "large": (2, 1, 256, 256),
    "not of sixteens": (4, 2, 40, 40),
}


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize("threads", (1, 3))
@pytest.mark.parametrize("normed", (False, True), ids=("turned", "normed"))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=("float32", "bfloat16"))
@pytest.mark.parametrize("shape", SHAPES)
def test_one_op_has_the_bits_of_the_ops_in_turn(
    shape: str, dtype: torch.dtype, normed: bool, threads: int
) -> None:
    queries, keys, size, turned = SHAPES[shape]
    heads = Heads(queries=queries, keys=keys, size=size, turned=turned, dtype=dtype, normed=normed)
    found, right, pool = heads.cache(), heads.cache(), Pool(threads)
    x = draw(MOST, (queries + 2 * keys) * size, dtype=dtype)
    positions = torch.arange(1000, 1000 + MOST)
    slots = torch.randperm(2 * BLOCK, generator=torch.Generator().manual_seed(0))[:MOST] + BLOCK
    memory = x.clone(), positions, slots
    tape = heads.tape(*memory, found)
    assert [line.kind for line in tape.lines] == [Kind.ANGLES, Kind.ROPE_STORE]
    for count in (1, 5, MOST):
        memory[0].copy_(x)
        q = tape.run(pool, Counts(count, 0, 1))
        exact = heads.forward(x[:count].clone(), positions[:count], slots[:count], right)
        assert torch.equal(q, exact)
        assert same(found, right)
    pool.close()


def same(one: Tensor, other: Tensor) -> bool:
    """To the bit, with NaN like NaN."""
    bits = torch.int32 if one.dtype is torch.float32 else torch.int16
    return torch.equal(one.view(bits), other.view(bits))


def test_what_is_not_the_keys_that_are_stored_is_left_alone() -> None:
    """The keys turn apart from their queries, others than the turned ones are stored, or it is not
    done just before."""
    heads = Heads(queries=4, keys=2, size=32, turned=32, dtype=torch.float32, normed=False)
    recorder, kv = Recorder(COUNTS, lambda: ""), heads.cache()
    x = recorder.given(draw(MOST, 8 * 32), Rows.TOKENS)
    positions, slots = (recorder.given(torch.arange(MOST), Rows.TOKENS) for _ in range(2))
    with recorder.recording():
        whole = x.view(len(x), -1, 32)
        q, k, v = whole.split((4, 2, 2), dim=1)
        angles = ops.rope_angles(positions, torch.ones(16), 1.0, torch.float32)
        ops.rope(q, *angles)
        ops.store_kv(k, v, kv, slots)
        ops.rope(k, *angles)
        ops.store_kv(k, v, kv, slots)
        ops.rope(whole[:, :6], *angles)
        ops.store_kv(v, k, kv, slots)
        ops.rope(whole[:, :6], *angles)
        ops.rms_norm(x, torch.ones(8 * 32), 1e-6)
        ops.store_kv(k, v, kv, slots)
    kinds = [line.kind for line in passes.fuse_heads(recorder.lines)]
    assert kinds == [line.kind for line in recorder.lines]
