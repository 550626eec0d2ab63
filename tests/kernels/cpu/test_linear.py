"""Packed weights, linears with their epilogues, and embeddings from panels."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from shoal.kernels.cpu import panels
from shoal.kernels.cpu.bindings import Pool
from shoal.kernels.cpu.structures import (
    Embed,
    Epilogue,
    Extent,
    Kind,
    Linear,
    Matrix,
    Panels,
    Sizes,
    Step,
    step,
)
from torch import Tensor
from torch.nn import functional

DTYPES = (torch.float32, torch.bfloat16)
ACTIVATIONS = {
    Epilogue.STORE: lambda y: y,
    Epilogue.GELU_ERF: functional.gelu,
    Epilogue.GELU_TANH: lambda y: functional.gelu(y, approximate="tanh"),
    Epilogue.RELU: functional.relu,
    Epilogue.SILU_MUL: lambda y: functional.silu(y.chunk(2, 1)[0]) * y.chunk(2, 1)[1],
}


@pytest.fixture(params=(1, 2, 3))
def pool(request: pytest.FixtureRequest) -> Iterator[Pool]:
    pool = Pool(request.param)
    yield pool
    pool.close()


def linear(
    pool: Pool,
    x: Tensor,
    weight: panels.Packed,
    out: Tensor,
    epilogue: Epilogue = Epilogue.STORE,
    bias: Tensor | None = None,
) -> None:
    into = Matrix(out.data_ptr(), 0, 0) if out.dim() == 1 else panels.matrix(out)
    address = None if bias is None else bias.data_ptr()
    args = Linear(panels.matrix(x), into, weight.panels, address, Extent.TOKENS, epilogue)
    assert pool.run((Step * 1)(step(Kind.LINEAR, args)), Sizes(len(x), 0, 0)) == 0


def close(got: Tensor, wanted: Tensor, dtype: torch.dtype) -> None:
    fine = 2e-5 if dtype is torch.float32 else 2e-2
    torch.testing.assert_close(got.float(), wanted.float(), rtol=fine, atol=fine)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("epilogue", ACTIVATIONS)
@pytest.mark.parametrize(
    ("rows", "inputs", "outputs"),
    ((1, 64, 64), (5, 33, 34), (37, 100, 70), (64, 7, 2), (3, 96, 256)),
)
def test_linear_is_the_product_with_its_epilogue(
    instructions: str,
    dtype: torch.dtype,
    epilogue: Epilogue,
    rows: int,
    inputs: int,
    outputs: int,
) -> None:
    torch.manual_seed(0)
    pool = Pool(2)
    x = torch.randn(rows, inputs).to(dtype)
    weight = (torch.randn(outputs, inputs) / inputs**0.5).to(dtype)
    bias = torch.randn(outputs)
    packed = panels.pack(pool, weight, paired=epilogue is Epilogue.SILU_MUL)
    for given in (None, bias):
        wanted = ACTIVATIONS[epilogue](functional.linear(x.float(), weight.float(), given))
        for kind in DTYPES:
            out = torch.full((rows + 1, wanted.shape[1] + 3), 7.0, dtype=kind)
            linear(pool, x, packed, out[:rows, : wanted.shape[1]], epilogue, given)
            close(out[:rows, : wanted.shape[1]], wanted, kind)
            assert bool((out[rows:] == 7).all()) and bool((out[:, wanted.shape[1] :] == 7).all())
    pool.close()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("onto", DTYPES)
def test_a_linear_adds_to_what_is_there(
    instructions: str, pool: Pool, dtype: torch.dtype, onto: torch.dtype
) -> None:
    torch.manual_seed(1)
    x, weight = torch.randn(19, 64).to(dtype), (torch.randn(75, 64) / 8).to(dtype)
    out = torch.randn(19, 75).to(onto)
    wanted = out.float() + functional.linear(x.float(), weight.float())
    linear(pool, x, panels.pack(pool, weight), out, Epilogue.ADD)
    close(out, wanted, onto)


@pytest.mark.parametrize("x_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_inputs_and_weights_may_differ_in_dtype(
    instructions: str, x_dtype: torch.dtype, dtype: torch.dtype
) -> None:
    torch.manual_seed(2)
    pool = Pool(1)
    # Numbers that bfloat16 holds: rounding x to the panels' dtype changes nothing.
    x = torch.randn(9, 40).bfloat16().to(x_dtype)
    weight = torch.randn(40, 40)
    packed = panels.pack(pool, weight, dtype=dtype)
    out = torch.empty(9, 40)
    linear(pool, x, packed, out)
    close(out, functional.linear(x.float(), weight.to(dtype).float()), torch.float32)
    pool.close()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_is_the_same_bits_in_any_company(
    instructions: str, pool: Pool, dtype: torch.dtype
) -> None:
    torch.manual_seed(3)
    x = torch.randn(70, 200).to(dtype)
    packed = panels.pack(pool, torch.randn(96, 200).to(dtype))
    whole = torch.empty(70, 96)
    linear(pool, x, packed, whole)
    for rows in range(1, 71):
        out = torch.empty(rows, 96)
        linear(pool, x[70 - rows :], packed, out)
        assert torch.equal(out, whole[70 - rows :]), rows


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_is_the_same_bits_where_a_panel_is_cut(instructions: str, dtype: torch.dtype) -> None:
    torch.manual_seed(7)
    pool = Pool(2)
    x = torch.randn(200, 1056).to(dtype)
    packed = panels.pack(pool, torch.randn(64, 1056).to(dtype))
    whole = torch.empty(200, 64)
    linear(pool, x, packed, whole)
    close(whole / 33, functional.linear(x.float(), packed.rows().float()) / 33, torch.float32)
    for rows in (1, 16, 17, 32, 33, 64, 100, 199):
        out = torch.empty(rows, 64)
        linear(pool, x[:rows], packed, out)
        assert torch.equal(out, whole[:rows]), rows
    pool.close()


@pytest.mark.parametrize("dtype", DTYPES)
def test_argmax_is_torchs(instructions: str, pool: Pool, dtype: torch.dtype) -> None:
    torch.manual_seed(4)
    weight = torch.randn(333, 64).to(dtype)
    weight[200] = weight[17]
    weight[332] = weight[5]
    packed = panels.pack(pool, weight)
    x = torch.randn(45, 64).to(dtype)
    x[0], x[1] = weight[17], weight[5]
    x[2] = 0  # all equal
    x[3, 3] = float("nan")
    bias = torch.zeros(333)
    for bad in (
        {},
        {100: float("nan"), 31: float("nan")},
        dict.fromkeys(range(333), -float("inf")),
    ):
        for place, value in bad.items():
            bias[place] = value
        logits = torch.empty(45, 333)
        linear(pool, x, packed, logits, bias=bias)
        tokens = torch.empty(45, dtype=torch.int64)
        linear(pool, x, packed, tokens, Epilogue.ARGMAX_ROW, bias)
        assert tokens.tolist() == logits.argmax(1).tolist()


def test_rows_beyond_one_round_of_the_shared_memory(instructions: str) -> None:
    torch.manual_seed(5)
    pool = Pool(2)
    inputs = 4096 * 8
    x = torch.randn(230, inputs).bfloat16()
    packed = panels.pack(pool, torch.randn(32, inputs).bfloat16())
    out, one = torch.empty(230, 32), torch.empty(1, 32)
    linear(pool, x, packed, out)
    for row in (0, 101, 229):
        linear(pool, x[row : row + 1], packed, one)
        assert torch.equal(one[0], out[row])
    pool.close()


@pytest.mark.parametrize("out_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_embedding_from_panels_and_from_a_table(
    instructions: str, pool: Pool, dtype: torch.dtype, out_dtype: torch.dtype
) -> None:
    torch.manual_seed(6)
    table = torch.randn(50, 72).to(dtype)
    tokens = torch.tensor([9, 10, 59, 60, -1, 31, 10])
    wanted = torch.zeros(7, 72)
    inside = (tokens >= 10) & (tokens < 60)
    wanted[inside] = table[tokens[inside] - 10].float()
    packed = panels.pack(pool, table)
    for given in (packed.panels, Panels()):
        out = torch.full((8, 72), 7.0, dtype=out_dtype)
        args = Embed(panels.matrix(out), tokens.data_ptr(), given, panels.matrix(table), 10, 50, 72)
        assert pool.run((Step * 1)(step(Kind.EMBED, args)), Sizes(7, 0, 0)) == 0
        assert torch.equal(out[:7], wanted.to(out_dtype)) and bool((out[7] == 7).all())


def test_panels_lie_as_the_header_says(instructions: str, pool: Pool) -> None:
    weight = torch.randn(70, 40)
    as_is = panels.pack(pool, weight).data.view(3, 64, 32)
    full = functional.pad(weight, (0, 24, 0, 26))
    assert torch.equal(as_is, full.view(3, 32, 64).transpose(1, 2))
    pairs = panels.pack(pool, weight.bfloat16()).data.view(3, 2, 2, 16, 16, 2)
    wanted = full.bfloat16().view(3, 2, 16, 2, 16, 2).permute(0, 3, 1, 4, 2, 5)
    assert torch.equal(pairs, wanted)
    paired = panels.pack(pool, weight, paired=True).data.view(3, 64, 2, 16)
    halves = functional.pad(weight.view(2, 35, 40), (0, 24, 0, 13)).view(2, 3, 16, 64)
    assert torch.equal(paired, halves.permute(1, 3, 0, 2))
    used = panels.pack(pool, weight)
    used.data.fill_(7)
    pool.pack(panels.matrix(weight), used.panels)
    assert torch.equal(used.data, as_is.flatten())


def test_packed_bytes_count_the_padding() -> None:
    pool = Pool(1)
    assert pool.packed_bytes(Panels(None, None, 33, 33, 1, 0)) == 64 * 64 * 2
    assert pool.packed_bytes(Panels(None, None, 33, 34, 0, 1)) == 64 * 64 * 4
    pool.close()
