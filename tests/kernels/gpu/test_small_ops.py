"""Norms, rotary embedding, gated unit, cache writes and exact products against the reference."""

from __future__ import annotations

import pytest
import torch
from shoal.kernels import reference
from shoal.kernels.gpu.family import Family
from torch import Tensor

BOUNDS = {torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def draw(*shape: int, dtype: torch.dtype, device: torch.device, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=random).to(device, dtype)


def close(found: Tensor, right: Tensor, bound: float = 1.0) -> None:
    assert found.dtype == right.dtype and found.shape == right.shape
    if right.numel():
        scale = max(1.0, float(right.float().abs().max()))
        apart = float((found.float() - right.float()).abs().max())
        assert apart <= bound * BOUNDS[right.dtype] * scale


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("shape", [(0, 8), (1, 1), (3, 17), (5, 4097), (4, 5, 24)])
def test_norms(dtype: torch.dtype, shape: tuple[int, ...], device: torch.device) -> None:
    from shoal.kernels.gpu import norm

    x, weight, bias = (
        draw(*size, dtype=dtype, device=device, seed=seed)
        for seed, size in enumerate((shape, shape[-1:], shape[-1:]))
    )
    kept = x.clone()
    close(norm.rms_norm(x, weight, 1e-5), reference.rms_norm(x, weight, 1e-5))
    close(norm.layer_norm(x, weight, bias, 1e-5), reference.layer_norm(x, weight, bias, 1e-5))
    if len(shape) == 2:
        for ours, right, extra in (
            (norm.add_rms_norm, reference.add_rms_norm, ()),
            (norm.add_layer_norm, reference.add_layer_norm, (bias,)),
        ):
            one = draw(*shape, dtype=dtype, device=device, seed=9)
            two = one.clone()
            close(ours(x, one, weight, *extra, 1e-6), right(x, two, weight, *extra, 1e-6))
            close(one, two)
    assert torch.equal(x, kept)


def test_a_norm_of_heads_between_others(device: torch.device) -> None:
    from shoal.kernels.gpu import norm

    heads = draw(6, 7, 40, dtype=torch.float32, device=device)
    weight = draw(40, dtype=torch.float32, device=device)
    middle = heads[:, 2:5]
    close(norm.rms_norm(middle, weight, 1e-5), reference.rms_norm(middle, weight, 1e-5))


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("turns", [0, 3, 20])
def test_rope(dtype: torch.dtype, turns: int, device: torch.device) -> None:
    from shoal.kernels.gpu import elementwise

    heads = draw(5, 7, 40, dtype=dtype, device=device)
    right = heads.clone()
    cos, sin = (draw(5, turns, dtype=dtype, device=device, seed=s).tanh() for s in (1, 2))
    elementwise.rope(heads[:, 2:5], cos, sin)
    reference.rope(right[:, 2:5], cos, sin)
    close(heads, right)


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize(("rows", "width", "start"), [(7, 1030, 0), (7, 24, 5), (0, 24, 5)])
def test_embed(dtype: torch.dtype, rows: int, width: int, start: int, device: torch.device) -> None:
    from shoal.kernels.gpu import elementwise

    table = draw(9, width, dtype=dtype, device=device)[:rows]
    tokens = torch.tensor([0, 6, 5, 11, 12, 2**40, 4], device=device)
    right = reference.embed(tokens, table, start=start)
    assert torch.equal(elementwise.embed(tokens, table, start=start), right)
    assert elementwise.embed(tokens[:0], table, start=start).shape == (0, width)


@pytest.mark.parametrize("dtype", BOUNDS)
def test_silu_mul(dtype: torch.dtype, device: torch.device) -> None:
    from shoal.kernels.gpu import elementwise

    for rows, width in ((0, 4), (1, 1), (3, 1025)):
        x = draw(rows, 2 * width, dtype=dtype, device=device) * 3
        close(elementwise.silu_mul(x), reference.silu_mul(x))


@pytest.mark.parametrize("dtype", BOUNDS)
def test_store_kv(dtype: torch.dtype, device: torch.device) -> None:
    from shoal.kernels.gpu import elementwise

    heads = draw(6, 8, 40, dtype=dtype, device=device)
    slots = torch.tensor([5, 31, 9, 8, 16, 17], device=device)
    found = torch.zeros(2, 4, 8, 3, 40, dtype=dtype, device=device)
    right = found.clone()
    elementwise.store_kv(heads[:, :3], heads[:, 4:7], found, slots)
    reference.store_kv(heads[:, :3], heads[:, 4:7], right, slots)
    assert torch.equal(found, right)
    elementwise.store_kv(heads[:0, :3], heads[:0, 4:7], found, slots[:0])


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize(("num_queries", "num_kv_heads", "size"), [(4, 2, 24), (3, 1, 128)])
@pytest.mark.filterwarnings("ignore:invalid value")  # the interpreter turns values too
def test_heads_turned_and_stored_at_once(
    dtype: torch.dtype,
    norm: bool,
    num_queries: int,
    num_kv_heads: int,
    size: int,
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As the ops that it stands for do, one after the other; values stay as they are."""
    from shoal.kernels import ops
    from shoal.kernels.gpu import heads

    num_tokens, num_heads = 5, num_queries + 2 * num_kv_heads
    given = draw(num_tokens, num_heads, size, dtype=dtype, device=device)
    given[1, -1, 0] = torch.inf
    cos, sin = (draw(num_tokens, size // 2, dtype=dtype, device=device, seed=s) for s in (1, 2))
    norms = None
    if norm:
        one, two = (draw(size, dtype=dtype, device=device, seed=s) for s in (3, 4))
        norms = one, two, 1e-5
    slots = torch.tensor([5, 31, 9, 8, 16], device=device)
    found = torch.zeros(2, 4, 8, num_kv_heads, size, dtype=dtype, device=device)
    right = found.clone()
    kept = given.clone()
    queries = heads.turn_and_store(given, found, slots, cos, sin, norms)
    assert torch.equal(given, kept)
    assert heads.turn_and_store(given[:0], found, slots[:0], cos[:0], sin[:0], norms).numel() == 0
    monkeypatch.setattr(ops, "_fused", lambda op, x: None)
    close(queries, ops.turn_and_store(given, right, slots, cos, sin, norms), bound=2)
    close(found[0], right[0], bound=2)
    assert torch.equal(found[1], right[1])


def test_heads_that_do_not_fit_the_cache_are_refused() -> None:
    from shoal.kernels import ops

    kv, angles = torch.zeros(2, 4, 8, 2, 24), torch.zeros(1, 12)
    for num_heads, size in ((4, 24), (7, 24), (8, 16)):
        heads = torch.zeros(1, num_heads, size)
        with pytest.raises(ValueError, match="do not fit a cache"):
            ops.turn_and_store(heads, kv, torch.zeros(1, dtype=torch.int64), angles, angles)


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("size", [1, 33, 2100])
def test_exact_products(dtype: torch.dtype, size: int, device: torch.device) -> None:
    """A row of many, of few and alone: the same bits, though other programs compute it."""
    from shoal.kernels.gpu.linear import linear

    x = draw(131, size, dtype=dtype, device=device) / max(size, 1) ** 0.5
    weight, bias = (draw(*s, dtype=dtype, device=device) for s in ((37, size), (37,)))
    whole = linear(x, weight, bias)
    close(whole, reference.linear(x, weight, bias), bound=2)
    assert torch.equal(linear(x[:3], weight, bias), whole[:3])
    assert torch.equal(linear(x[130:], weight, bias), whole[130:])
    assert torch.equal(linear(x[7:9], weight), linear(x, weight)[7:9])
    assert linear(x[:0], weight).shape == (0, 37)


def test_exact_products_of_a_family(kind: Family, device: torch.device) -> None:
    """Its tile, by the programs for few rows and by those for many."""
    from shoal.kernels.gpu.linear import linear

    dtype = torch.float16 if kind is Family.OLD else torch.bfloat16
    x = draw(131, 1100, dtype=dtype, device=device) / 33
    weight = draw(70, 1100, dtype=dtype, device=device)
    whole = linear(x, weight)
    close(whole, reference.linear(x, weight), bound=2)
    assert torch.equal(linear(x[:70], weight), whole[:70])
