"""Every op against a naive form of its own, over odd shapes.

The naive forms are written element by element or in float64, and share no code with the ops.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import pytest
import torch
from shoal.kernels import ops
from torch import Tensor

torch.set_num_threads(1)

DTYPES = {torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def close(found: Tensor, right: Tensor, dtype: torch.dtype) -> None:
    assert found.dtype == dtype and found.shape == right.shape
    scale = max(1.0, float(right.abs().max())) if right.numel() else 1.0
    assert not right.numel() or float((found.double() - right).abs().max()) < DTYPES[dtype] * scale


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [0, 1, 7, 130])
def test_linear(dtype: torch.dtype, tokens: int) -> None:
    x, weight, bias = (draw(*s, dtype=dtype) for s in ((tokens, 33), (19, 33), (19,)))
    right = x.double() @ weight.double().T
    close(ops.linear(x, weight), right, dtype)
    close(ops.linear(x, weight, bias), right + bias.double(), dtype)


def test_embed_of_a_shard_is_zero_outside() -> None:
    table = draw(11, 5)
    tokens = torch.tensor([0, 10, 3, 3, 7])
    assert torch.equal(ops.embed(tokens, table), table[tokens])
    parts = [ops.embed(tokens, table[a:b], start=a) for a, b in ((0, 4), (4, 11), (11, 11))]
    assert torch.equal(torch.stack(parts).sum(0), table[tokens])


def naive_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.double()
    return wide / (wide.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight.double()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 17), (129, 64), (4, 5, 24)])
def test_rms_norm(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x, weight = draw(*shape, dtype=dtype), draw(shape[-1], dtype=dtype)
    kept = x.clone()
    close(ops.rms_norm(x, weight, 1e-5), naive_norm(x, weight, 1e-5), dtype)
    assert torch.equal(x, kept)
    view = torch.cat([x, x], -1)[..., : shape[-1]]
    assert torch.equal(ops.rms_norm(view, weight, 1e-5), ops.rms_norm(x, weight, 1e-5))


@pytest.mark.parametrize("dtype", DTYPES)
def test_add_rms_norm(dtype: torch.dtype) -> None:
    x, residual, weight = draw(5, 40, dtype=dtype), draw(5, 40, dtype=dtype, seed=1), draw(40)
    weight, total, kept = weight.to(dtype), residual + x, x.clone()
    found = ops.add_rms_norm(x, residual, weight, 1e-6)
    assert torch.equal(residual, total) and torch.equal(x, kept)
    close(found, naive_norm(total, weight, 1e-6), dtype)


def naive_layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    wide = x.double()
    centred = wide - wide.mean(-1, keepdim=True)
    variance = centred.pow(2).mean(-1, keepdim=True)
    return centred / (variance + eps).sqrt() * weight.double() + bias.double()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 2), (3, 17), (129, 64), (4, 5, 24)])
def test_layer_norm(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x, weight, bias = (
        draw(*shape, dtype=dtype),
        *(draw(shape[-1], dtype=dtype, seed=s) for s in (1, 2)),
    )
    kept = x.clone()
    close(ops.layer_norm(x, weight, bias, 1e-5), naive_layer_norm(x, weight, bias, 1e-5), dtype)
    assert torch.equal(x, kept)
    view = torch.cat([x, x], -1)[..., : shape[-1]]
    assert torch.equal(
        ops.layer_norm(view, weight, bias, 1e-5), ops.layer_norm(x, weight, bias, 1e-5)
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_adding_to_the_residual(dtype: torch.dtype) -> None:
    x, residual = draw(5, 40, dtype=dtype), draw(5, 40, dtype=dtype, seed=1)
    weight, bias = (draw(40, dtype=dtype, seed=s) for s in (2, 3))
    total, kept, other = residual + x, x.clone(), residual.clone()
    found = ops.add_layer_norm(x, residual, weight, bias, 1e-6)
    ops.add(x, other)
    assert torch.equal(residual, total) and torch.equal(other, total) and torch.equal(x, kept)
    close(found, naive_layer_norm(total, weight, bias, 1e-6), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_activations(dtype: torch.dtype) -> None:
    x = torch.cat([draw(3, 37), 4 * draw(3, 37, seed=1)]).to(dtype)
    kept, wide = x.clone(), x.double()
    normal = (1 + torch.special.erf(wide / math.sqrt(2))) / 2
    close(ops.gelu(x), wide * normal, dtype)
    inner = math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3)
    close(ops.gelu(x, tanh=True), wide / 2 * (1 + inner.tanh()), dtype)
    close(ops.relu(x), wide * (wide > 0), dtype)
    assert torch.equal(x, kept)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "size", "turned"), [(1, 2, 2), (3, 24, 24), (6, 40, 16)])
def test_rope(dtype: torch.dtype, heads: int, size: int, turned: int) -> None:
    half = turned // 2
    positions = torch.tensor([0, 1, 5, 1000])
    inv_freq = 1.0 / 10_000 ** (torch.arange(half) / half)
    cos, sin = ops.rope_angles(positions, inv_freq, 1.25, dtype)
    packed = draw(4, heads + 2, size, dtype=dtype)
    x = packed[:, 1 : heads + 1]
    right = x.double().clone()
    for token, position in enumerate(positions.tolist()):
        for i in range(half):
            angle = position * float(inv_freq[i])
            c, s = 1.25 * math.cos(angle), 1.25 * math.sin(angle)
            a, b = x[token, :, i].double(), x[token, :, half + i].double()
            right[token, :, i], right[token, :, half + i] = a * c - b * s, b * c + a * s
    beside = packed[:, [0, -1]].clone()
    ops.rope(x, cos, sin)
    # The angle of position 1,000 is a float32: off by some 1e-4 of a turn.
    scale = float(right.abs().max())
    assert float((x.double() - right).abs().max()) < max(DTYPES[dtype], 2e-4) * scale
    assert torch.equal(packed[:, [0, -1]], beside)


@pytest.mark.parametrize("dtype", DTYPES)
def test_silu_mul(dtype: torch.dtype) -> None:
    x = draw(5, 38, dtype=dtype)
    gate, up = x[:, :19].double(), x[:, 19:].double()
    close(ops.silu_mul(x), gate / (1 + (-gate).exp()) * up, dtype)


def test_store_kv_touches_its_slots_alone() -> None:
    cache = draw(2, 5, 4, 3, 6)
    kept = cache.clone()
    packed = draw(3, 9, 6)
    slots = [7, 19, 4]
    ops.store_kv(packed[:, 3:6], packed[:, 6:], cache, torch.tensor(slots))
    for row, slot in enumerate(slots):
        kept[0, slot // 4, slot % 4] = packed[row, 3:6]
        kept[1, slot // 4, slot % 4] = packed[row, 6:]
    assert torch.equal(cache, kept)


@dataclass(frozen=True)
class Batch:
    """Sequences as (new tokens, keys once they are stored), in a cache of shuffled blocks."""

    sequences: tuple[tuple[int, int], ...]
    num_heads: int = 4
    num_kv_heads: int = 2
    head_size: int = 16
    block_size: int = 16
    padding: int = 0


class Paged:
    """The tensors of a Batch, and each sequence's own keys and values."""

    def __init__(self, batch: Batch, dtype: torch.dtype, seed: int = 0) -> None:
        size, heads, width = batch.block_size, batch.num_kv_heads, batch.head_size
        tables = [-(-length // size) for _, length in batch.sequences]
        num_blocks = sum(tables) + 3
        ids = random.Random(seed).sample(range(1, num_blocks), num_blocks - 1)
        self.kv = torch.full((2, num_blocks, size, heads, width), torch.nan, dtype=dtype)
        self.table = torch.zeros(len(tables), max(tables) + 2, dtype=torch.int32)
        self.own: list[Tensor] = []
        starts = [0]
        for row, (new, length) in enumerate(batch.sequences):
            blocks = [ids.pop() for _ in range(tables[row])]
            self.table[row, : len(blocks)] = torch.tensor(blocks, dtype=torch.int32)
            own = draw(2, length, heads, width, dtype=dtype, seed=row)
            slots = [blocks[at // size] * size + at % size for at in range(length)]
            ops.store_kv(own[0], own[1], self.kv, torch.tensor(slots))
            self.own.append(own)
            starts.append(starts[-1] + new)
        self.query_start = torch.tensor(starts, dtype=torch.int32)
        self.kv_len = torch.tensor([length for _, length in batch.sequences], dtype=torch.int32)
        rows = starts[-1] + batch.padding
        self.q = draw(rows, batch.num_heads, batch.head_size, dtype=dtype, seed=9)

    def attend(self, **options: object) -> Tensor:
        return ops.paged_attention(
            self.q,
            self.kv,
            self.table,
            self.query_start,
            self.kv_len,
            **options,  # type: ignore[arg-type]
        )


def naive_attention(
    paged: Paged,
    scale: float,
    window: int | None,
    softcap: float | None,
    alibi: Tensor | None = None,
) -> Tensor:
    """One query and one head at a time, in float64."""
    found = torch.zeros(paged.q.shape, dtype=torch.float64)
    starts = paged.query_start.tolist()
    for (keys, values), start, stop in zip(paged.own, starts, starts[1:], strict=False):
        group = paged.q.shape[1] // keys.shape[1]
        for row in range(start, stop):
            last = len(keys) - (stop - row)
            first = 0 if window is None else max(0, last + 1 - window)
            for head in range(paged.q.shape[1]):
                seen = slice(first, last + 1), head // group
                scores = keys[seen].double() @ paged.q[row, head].double() * scale
                if softcap is not None:
                    scores = softcap * (scores / softcap).tanh()
                if alibi is not None:
                    scores = scores + alibi[head, first : last + 1].double()
                found[row, head] = scores.softmax(0) @ values[seen].double()
    return found


BATCHES = {
    "one": Batch(((1, 1),)),
    "decode": Batch(((1, 33), (1, 1), (1, 16), (1, 17), (1, 100))),
    "prefill": Batch(((5, 5), (16, 16), (140, 140)), padding=3),
    "chunks": Batch(((5, 9), (2, 40), (130, 170), (3, 300)), block_size=32),
    "mixed": Batch(((1, 50), (20, 31), (1, 3), (4, 4), (1, 50)), padding=2),
    "mqa": Batch(((1, 20), (7, 20), (1, 9)), num_heads=6, num_kv_heads=1),
    "mha": Batch(((1, 20), (7, 20)), num_heads=3, num_kv_heads=3, block_size=4),
    "odd": Batch(((1, 20), (7, 20), (1, 31)), num_heads=10, head_size=24),
    "many": Batch(tuple((1, 1 + 7 * n % 90) for n in range(40)), head_size=40),
    "wide": Batch(((1, 2000), (1, 1500), (1, 90), (1, 80)), num_kv_heads=4, head_size=128),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", BATCHES)
def test_paged_attention(name: str, dtype: torch.dtype) -> None:
    paged = Paged(BATCHES[name], dtype)
    close(paged.attend(scale=0.3), naive_attention(paged, 0.3, None, None), dtype)


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("window", [1, 2, 16, 129, 5000])
def test_window(name: str, window: int) -> None:
    paged = Paged(BATCHES[name], torch.float32)
    # A block that has left every query's window is given back: its place names the null block.
    for row, (new, length) in enumerate(BATCHES[name].sequences):
        gone = max(0, length - new + 1 - window) // BATCHES[name].block_size
        paged.table[row, :gone] = 0
    found = paged.attend(scale=0.25, window=window)
    close(found, naive_attention(paged, 0.25, window, None), torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["mixed", "mqa", "odd"])
def test_softcap(name: str, dtype: torch.dtype) -> None:
    paged = Paged(BATCHES[name], dtype)
    found = paged.attend(scale=1.0, softcap=2.0, window=12)
    close(found, naive_attention(paged, 1.0, 12, 2.0), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", BATCHES)
def test_alibi(name: str, dtype: torch.dtype) -> None:
    """A slope a head, over tables longer than any sequence and far from zero."""
    paged = Paged(BATCHES[name], dtype)
    longest = int(paged.kv_len.max())
    slopes = 0.7 ** torch.arange(paged.q.shape[1]) * min(0.4, 20 / longest)
    # Steps of a power of two, so that the table itself holds every difference to the bit.
    alibi = slopes.log2().round().exp2()[:, None] * torch.arange(10_000, longest + 10_003)
    found = paged.attend(scale=0.3, alibi=alibi)
    close(found, naive_attention(paged, 0.3, None, None, alibi), dtype)


@pytest.mark.parametrize("name", ["mixed", "mqa", "odd", "chunks"])
def test_alibi_with_window_and_softcap(name: str) -> None:
    paged = Paged(BATCHES[name], torch.float32)
    alibi = draw(paged.q.shape[1], 300)
    found = paged.attend(scale=1.0, softcap=2.0, window=12, alibi=alibi)
    close(found, naive_attention(paged, 1.0, 12, 2.0, alibi), torch.float32)


def test_a_plan_serves_every_layer() -> None:
    batch = BATCHES["mixed"]
    layers = [Paged(batch, torch.float32) for _ in range(2)]
    layers[1].kv.mul_(0.5)
    first = layers[0]
    plan = ops.plan_attention(
        first.kv, first.table, first.query_start, first.kv_len, max_query=20, max_kv=50
    )
    for layer in layers:
        assert torch.equal(layer.attend(scale=0.3, plan=plan), layer.attend(scale=0.3))


def test_nan_of_one_sequence_stays_there() -> None:
    batch = BATCHES["mixed"]
    right = Paged(batch, torch.float32).attend(scale=0.3)
    for sick, (new, length) in enumerate(batch.sequences):
        paged = Paged(batch, torch.float32)
        block = int(paged.table[sick, 0])
        paged.kv[:, block] = torch.nan
        found = paged.attend(scale=0.3)
        start = int(paged.query_start[sick])
        rows = torch.zeros(len(found), dtype=torch.bool)
        rows[start : start + new] = True
        assert length and found[rows].isnan().all()
        assert torch.equal(found[~rows], right[~rows])


def test_shapes_that_do_not_fit_are_refused() -> None:
    paged = Paged(BATCHES["one"], torch.float32)
    for op, words in (
        (lambda: ops.linear(draw(2, 3), draw(4, 5)), "linear"),
        (lambda: ops.rms_norm(draw(2, 3), draw(4), 1e-6), "rms_norm"),
        (lambda: ops.add_rms_norm(draw(2, 3), draw(1, 3), draw(3), 1e-6), "add_rms_norm"),
        (lambda: ops.layer_norm(draw(2, 3), draw(3), draw(4), 1e-6), "layer_norm"),
        (lambda: ops.layer_norm(draw(2, 3), draw(4), draw(4), 1e-6), "layer_norm"),
        (
            lambda: ops.add_layer_norm(draw(2, 3), draw(1, 3), draw(3), draw(3), 1e-6),
            "add_layer_norm",
        ),
        (lambda: ops.add(draw(2, 3), draw(1, 3)), "add: "),
        (lambda: paged.attend(scale=1.0, alibi=draw(3, 9)), "alibi"),
        (lambda: ops.rope(draw(2, 1, 4), draw(2, 3), draw(2, 3)), "rope"),
        (
            lambda: ops.store_kv(draw(2, 1, 4), draw(2, 1, 4), paged.kv, torch.tensor([1, 2])),
            "store_kv",
        ),
        (
            lambda: ops.paged_attention(
                paged.q[:, :3], paged.kv, paged.table, paged.query_start, paged.kv_len, scale=1.0
            ),
            "paged_attention",
        ),
        (
            lambda: ops.paged_attention(
                paged.q, paged.kv, paged.table, paged.query_start[:1], paged.kv_len, scale=1.0
            ),
            "one batch",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            op()
