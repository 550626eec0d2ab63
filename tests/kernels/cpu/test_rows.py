"""Norms, angles, rotation, activations, gathers and argmax against the reference."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from shoal.kernels import reference
from shoal.kernels.cpu.structures import (
    Activate,
    Add,
    Angles,
    Argmax,
    Epilogue,
    Extent,
    Gather,
    Kind,
    Norm,
    NormKind,
    Rope,
)
from torch import Tensor

from .steps import draw, matrix, run

torch.set_num_threads(1)
pytestmark = pytest.mark.usefixtures("instructions")

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1e-2}


@pytest.fixture(params=TOLERANCE, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    found: torch.dtype = request.param
    return found


def close(found: Tensor, right: Tensor) -> None:
    scale = max(1.0, float(right.abs().max()))
    worst = float((found.double() - right.double()).abs().max())
    assert worst <= TOLERANCE[found.dtype] * scale, worst


def norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    add: Tensor | None = None,
    groups: int = 1,
    x_step: int = 0,
    out: torch.dtype | None = None,
    threads: int = 2,
) -> Tensor:
    found = torch.zeros(len(x), groups * len(weight), dtype=out or x.dtype)
    kind = NormKind.RMS if bias is None else NormKind.LAYER
    args = Norm(
        matrix(x),
        matrix(add),
        matrix(found),
        weight.data_ptr(),
        None if bias is None else bias.data_ptr(),
        len(weight),
        groups,
        x_step,
        len(weight),
        1e-6,
        kind,
        Extent.TOKENS,
    )
    run(Kind.NORM, args, tokens=len(x), threads=threads)
    return found


@pytest.mark.parametrize("shape", [(1, 1), (3, 17), (33, 64), (5, 1024), (2, 48)])
def test_rms_norm(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    x, weight = draw(*shape, dtype=dtype), draw(shape[1])
    right = reference.rms_norm(x.float(), weight, 1e-6)
    close(norm(x, weight), right)
    close(norm(x, weight, out=torch.bfloat16), right)


@pytest.mark.parametrize("shape", [(1, 1), (3, 17), (33, 64), (5, 1024)])
def test_layer_norm(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    x, weight, bias = draw(*shape, dtype=dtype), draw(shape[1]), draw(shape[1], seed=1)
    close(norm(x, weight, bias), reference.layer_norm(x.float(), weight, bias, 1e-6))


def test_norm_adds_first_and_keeps_the_sum(dtype: torch.dtype) -> None:
    for other in TOLERANCE:
        total, x, weight = draw(9, 80, dtype=dtype), draw(9, 80, dtype=other, seed=1), draw(80)
        right = (total.float() + x.float()).to(dtype)
        close(norm(total, weight, add=x), reference.rms_norm(right.float(), weight, 1e-6))
        assert torch.equal(total, right)


def test_norm_of_heads_among_others(dtype: torch.dtype) -> None:
    x, weight = draw(7, 6 * 32, dtype=dtype), draw(32)
    right = reference.rms_norm(x.float().view(7, 6, 32), weight, 1e-6)
    close(norm(x, weight, groups=6, x_step=32), right.view(7, -1))
    close(norm(x, weight, groups=3, x_step=64), right[:, ::2].reshape(7, -1))


def test_a_row_s_norm_is_the_same_alone(dtype: torch.dtype) -> None:
    x, weight = draw(40, 1000, dtype=dtype), draw(1000)
    together = norm(x, weight, threads=3)
    for row in range(len(x)):
        assert torch.equal(norm(x[row : row + 1], weight, threads=1)[0], together[row])


@pytest.mark.parametrize("columns", [1, 15, 64])
def test_angles(columns: int) -> None:
    positions = torch.tensor([0, 1, 17, 4_095, 131_071, 999_999])
    inv_freq = 1e4 ** -(torch.arange(columns) / columns)
    cos, sin = torch.zeros(2, len(positions), columns)
    addresses = (x.data_ptr() for x in (positions, inv_freq, cos, sin))
    run(Kind.ANGLES, Angles(*addresses, columns, 1.25), tokens=len(positions))
    right = reference.rope_angles(positions, inv_freq, 1.25, torch.float32)
    for found, each in zip((cos, sin), right, strict=True):
        assert float((found - each).abs().max()) < 1e-6


@pytest.mark.parametrize(("size", "angles"), [(32, 16), (24, 4), (128, 64), (80, 10)])
def test_rope(dtype: torch.dtype, size: int, angles: int) -> None:
    x = draw(5, 3, size, dtype=dtype)
    cos, sin = reference.rope_angles(torch.arange(5) * 100, draw(angles).abs(), 1.0, torch.float32)
    right = x.double()
    reference.rope(right, cos.double(), sin.double())
    args = Rope(matrix(x), cos.data_ptr(), sin.data_ptr(), 3, size, angles)
    run(Kind.ROPE, args, tokens=5)
    close(x, right)


ACTIVATIONS = {
    Epilogue.SILU_MUL: lambda x: F.silu(x[:, : x.shape[1] // 2]) * x[:, x.shape[1] // 2 :],
    Epilogue.GELU_ERF: F.gelu,
    Epilogue.GELU_TANH: lambda x: F.gelu(x, approximate="tanh"),
    Epilogue.RELU: F.relu,
}


@pytest.mark.parametrize("kind", ACTIVATIONS)
@pytest.mark.parametrize("columns", [1, 33, 1100])
def test_activate(dtype: torch.dtype, kind: Epilogue, columns: int) -> None:
    x = draw(3, 2 * columns if kind == Epilogue.SILU_MUL else columns, dtype=dtype) * 4
    found = torch.zeros(3, columns, dtype=dtype)
    args = Activate(matrix(x), matrix(found), columns, kind, Extent.TOKENS)
    run(Kind.ACTIVATE, args, tokens=3)
    close(found, ACTIVATIONS[kind](x.double()))


def test_activations_of_odd_values() -> None:
    x = torch.tensor([[0.0, -0.0, 1e-30, -90.0, 90.0, 1e30, torch.nan, -1e30]])
    for kind in (Epilogue.GELU_ERF, Epilogue.GELU_TANH, Epilogue.RELU):
        found = torch.zeros_like(x)
        args = Activate(matrix(x), matrix(found), x.shape[1], kind, Extent.TOKENS)
        run(Kind.ACTIVATE, args, tokens=1)
        assert torch.allclose(found, ACTIVATIONS[kind](x), equal_nan=True), kind


def test_add(dtype: torch.dtype) -> None:
    for other in TOLERANCE:
        x, total = draw(6, 37, dtype=other), draw(6, 37, dtype=dtype, seed=1)
        right = total.float() + x.float()
        args = Add(matrix(x), matrix(total), 37, Extent.WANTED)
        run(Kind.ADD_ROWS, args, wanted=6)
        close(total, right)


def test_gather(dtype: torch.dtype) -> None:
    x, rows = draw(9, 50, dtype=dtype), torch.tensor([8, 0, 3, 3])
    for other in TOLERANCE:
        found = torch.zeros(4, 50, dtype=other)
        args = Gather(matrix(x), matrix(found), rows.data_ptr(), 50)
        run(Kind.GATHER, args, wanted=4)
        assert torch.equal(found, x[rows].to(other))


def argmax(logits: Tensor, threads: int) -> Tensor:
    found = torch.zeros(len(logits), dtype=torch.int64)
    args = Argmax(matrix(logits), found.data_ptr(), logits.shape[1])
    run(Kind.ARGMAX, args, wanted=len(logits), threads=threads)
    return found


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("shape", [(1, 1), (2, 17), (1, 5000), (7, 2050)])
def test_argmax(threads: int, shape: tuple[int, int]) -> None:
    logits = draw(*shape)
    assert torch.equal(argmax(logits, threads), logits.argmax(-1))
    logits[:, shape[1] // 2 :] = 9.0
    assert argmax(logits, threads).tolist() == [shape[1] // 2] * shape[0]
    logits.fill_(-torch.inf)
    assert argmax(logits, threads).tolist() == [0] * shape[0]
    logits[:, shape[1] // 3 :] = torch.nan
    assert argmax(logits, threads).tolist() == [shape[1] // 3] * shape[0]
