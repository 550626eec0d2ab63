"""The native ops by their common names, and weights in panels."""

from __future__ import annotations

import pytest
import torch
from shoal.kernels import ops, reference
from shoal.kernels.cpu.bindings import Pool
from shoal.kernels.cpu.panels import Packed
from shoal.kernels.cpu.threads import using
from torch import Tensor

DTYPES = {torch.float32: 2e-5, torch.bfloat16: 2e-2}
SHAPES = ((1, 1), (33, 7), (64, 96), (331, 50), (200, 130))


def draw(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def packed(weight: Tensor, *, paired: bool = False) -> Packed:
    found = ops.pack(weight, paired=paired)
    assert isinstance(found, Packed)
    return found


def close(found: Tensor, right: Tensor, tolerance: float) -> None:
    assert found.shape == right.shape
    assert float((found.float() - right.float()).abs().max()) <= tolerance * max(
        1.0, float(right.abs().max())
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_packed_weight_is_the_weight(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    weight = draw(*shape, dtype=dtype)
    found = packed(weight)
    assert found.shape == weight.shape and found.dtype == dtype and len(found) == shape[0]
    assert torch.equal(found.rows(), weight)
    assert found.nbytes == ops.packed_bytes(weight) == ops.packed_bytes(weight.to("meta"))
    assert found.nbytes == packed(weight.to("meta")).nbytes
    tokens = torch.tensor([0, shape[0] - 1, -1, shape[0]])
    assert torch.equal(ops.embed(tokens, found), ops.embed(tokens, weight))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 5), (66, 40), (192, 33)])
def test_a_paired_weight_is_a_gate_and_its_partner(
    dtype: torch.dtype, shape: tuple[int, int]
) -> None:
    weight, x = draw(*shape, dtype=dtype), draw(9, shape[1], dtype=dtype, seed=1)
    bias = draw(shape[0], dtype=dtype, seed=2)
    found = packed(weight, paired=True)
    assert torch.equal(found.rows(), weight)
    assert found.nbytes == ops.packed_bytes(weight, paired=True)
    right = reference.silu_mul(reference.linear(x.float(), weight.float(), bias.float()))
    close(ops.gated_linear(x, found, bias), right, DTYPES[dtype])
    close(ops.gated_linear(x, weight, bias), right, DTYPES[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tokens", [0, 1, 33])
def test_products_of_packed_weights(
    dtype: torch.dtype, shape: tuple[int, int], tokens: int
) -> None:
    weight, x = draw(*shape, dtype=dtype), draw(tokens, shape[1], dtype=dtype, seed=1)
    bias, right = draw(shape[0], dtype=dtype, seed=2), x.float() @ weight.float().T
    found = ops.linear(x, packed(weight), bias)
    assert found.dtype == dtype
    logits = ops.logits(x, packed(weight))
    assert logits.dtype == torch.float32
    if tokens:
        close(found, right + bias.float(), DTYPES[dtype])
        close(logits, right, DTYPES[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [0, 1, 33])
def test_the_greatest_logit_is_that_of_the_logits(dtype: torch.dtype, rows: int) -> None:
    weight, x = draw(331, 64, dtype=dtype), draw(rows, 64, dtype=dtype, seed=1)
    weight[200] = weight[17]
    if rows > 2:
        x[0], x[1], x[2, 5] = weight[17], torch.inf, torch.nan
    for form in (packed(weight), weight):
        top, tokens = ops.greatest_logit(x, form)
        right, ids = ops.logits(x, form).max(-1) if rows else (top, tokens)
        assert torch.equal(top.view(torch.int32)[3:], right.view(torch.int32)[3:])
        assert torch.equal(top.nan_to_num(7), right.nan_to_num(7))
        assert torch.equal(tokens, ids)


def test_an_op_that_fails_gives_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Pool(1)
    monkeypatch.setattr(pool, "run", lambda *given: 1)
    with using(pool), pytest.raises(RuntimeError, match="the native op GATHER failed"):
        ops.gather(draw(7, 5, dtype=torch.float32), torch.tensor([6]))
    pool.close()


def test_rows_are_gathered() -> None:
    x, rows = draw(7, 5, dtype=torch.bfloat16), torch.tensor([6, 0, 3])
    assert torch.equal(ops.gather(x, rows), x[rows])
