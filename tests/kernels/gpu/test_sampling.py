"""Draws, penalties and tops against the definitions in plain torch."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from shoal.kernels import sampling
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..masks import masked

ROWS = 8


def generator(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def logits(vocab_size: int, spread: float, device: torch.device) -> Tensor:
    """Rows with ties, with tokens that are not allowed, and with one left."""
    x = torch.randn(ROWS, vocab_size, generator=generator()) * spread
    x[3] = x[3].round()
    x[4, ::2] = -torch.inf
    x[5, 1:] = -torch.inf
    return (x - x.max(-1, keepdim=True).values).to(device)


def words(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    random = generator(2)
    key = torch.randint(-(2**63), 2**63 - 1, (ROWS,), generator=random)
    position = torch.randint(0, 2**31, (ROWS,), generator=random)
    sibling = torch.randint(0, 9, (ROWS,), generator=random)
    key[0], position[1], sibling[2] = -1, 2**32 - 1, 2**32 - 1
    return key.to(device), position.to(device), sibling.to(device)


def test_uniforms_are_the_same_bits(device: torch.device) -> None:
    from shoal.kernels.gpu import draw

    for number in (0, 3):
        found = draw.keyed_uniform(*words(device), number)
        assert torch.equal(found, sampling.keyed_uniform(*words(device), number))


@pytest.mark.parametrize(("vocab_size", "spread"), [(2, 1.0), (7, 1.0), (5000, 3.0), (4096, 0.1)])
def test_draw_any(vocab_size: int, spread: float, device: torch.device) -> None:
    from shoal.kernels.gpu import draw

    x, u = logits(vocab_size, spread, device), sampling.keyed_uniform(*words(device))
    u[0], u[1] = 0.0, 1 - 2**-53
    assert draw.draw_any(x, u).tolist() == sampling.draw_any(x, u).tolist()


@pytest.mark.parametrize(
    ("vocab_size", "spread", "kept"), [(7, 1.0, 4096), (5000, 3.0, 4096), (200, 0.5, 16)]
)
def test_cuts(
    vocab_size: int, spread: float, kept: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`kept` of 16: most rows have more candidates than there is room for."""
    from shoal.kernels.gpu import cut

    monkeypatch.setattr(cut, "KEPT", kept)
    random = generator(3)
    x, u = logits(vocab_size, spread, device), sampling.keyed_uniform(*words(device))
    top_p = torch.rand(ROWS, generator=random) * 0.99 + 0.01
    top_p[6] = 1e-30
    top_k = torch.randint(1, 50, (ROWS,), generator=random)
    min_p = torch.rand(ROWS, generator=random) / 2
    top_k[:2], top_k[2:4], min_p[::2], min_p[7] = vocab_size, 0, 0.0, 1.0
    min_p[2] = 0.1
    top_p, top_k, min_p = (t.to(device) for t in (top_p, top_k, min_p))
    found = cut.draw_nucleus(x, u, top_p)
    assert found.tolist() == sampling.draw_nucleus(x, u, top_p).tolist()
    top_p[::3] = 1
    most = int(top_k.max())
    found = cut.draw_cut(x, u, top_k, most, min_p, top_p)
    assert found.tolist() == sampling.draw_cut(x, u, top_k, most, min_p, top_p).tolist()


def test_a_draw_is_the_same_alone_and_in_company(device: torch.device) -> None:
    from shoal.kernels.gpu import cut, draw

    x, u = logits(300, 1.0, device), sampling.keyed_uniform(*words(device))
    top_p = torch.full((ROWS,), 0.7, device=device)
    together = cut.draw_nucleus(x, u, top_p), draw.draw_any(x, u)
    for row in (0, 3, 4):
        one = slice(row, row + 1)
        alone = cut.draw_nucleus(x[one], u[one], top_p[one]), draw.draw_any(x[one], u[one])
        assert [int(t) for t in alone] == [int(t[row]) for t in together]


def test_a_row_of_nan_gives_some_token(device: torch.device) -> None:
    from shoal.kernels.gpu import cut, draw

    x = torch.full((2, 300), torch.nan, device=device)
    u = torch.tensor([0.3, 0.9], dtype=torch.float64, device=device)
    half = torch.full((2,), 0.5, device=device)
    ks = torch.tensor([0, 4], device=device)
    for found in (
        draw.draw_any(x, u),
        cut.draw_nucleus(x, u, half),
        cut.draw_cut(x, u, ks, 4, half, half),
    ):
        assert ((found >= 0) & (found < 300)).all()


def test_tops_are_ordered_by_value_and_then_by_id(device: torch.device) -> None:
    from shoal.kernels.gpu.top import top_tokens

    values = torch.randn(ROWS, 90, generator=generator()).round().to(device)
    values[0] = -0.0
    values[0, 50] = 0.0
    ids, found = top_tokens(values, 7)
    right_ids, right = sampling.top_tokens(values, 7)
    assert torch.equal(ids, right_ids) and torch.equal(found, right)
    assert top_tokens(values, 900)[0].shape == (ROWS, 90)


class Held(TorchDispatchMode):
    """The most bytes that tensors made under it held at once."""

    def __init__(self) -> None:
        super().__init__()
        self.most, self._made = 0, list[weakref.ref[Tensor]]()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        found = function(*args, **(kwargs or {}))
        self._made += [weakref.ref(each) for each in tree_leaves(found)]
        alive = [each.untyped_storage() for made in self._made if (each := made()) is not None]
        self.most = max(self.most, sum({one.data_ptr(): one.nbytes() for one in alive}.values()))
        return found


def test_tops_are_found_in_three_times_the_memory() -> None:
    """What an engine's memory is planned with."""
    from shoal.kernels.gpu.top import top_tokens

    values = torch.randn(64, 4096)
    with Held() as held:
        top_tokens(values, 20)
    assert 2 * values.nbytes < held.most < 3.1 * values.nbytes


@pytest.mark.parametrize("vocab_size", [1, 40, 2100])
@pytest.mark.parametrize("num_masks", [0, 2])
@pytest.mark.filterwarnings("ignore:invalid value")  # the interpreter adds to what is banned too
def test_masks(vocab_size: int, num_masks: int, device: torch.device) -> None:
    from shoal.kernels.gpu.mask import mask

    logits, *edits = (each.to(device) for each in masked(vocab_size, num_masks))
    right = logits.clone()
    broken = mask(logits, *edits)
    assert torch.equal(broken, sampling.mask(right, *edits))
    torch.testing.assert_close(logits, right, rtol=0, atol=0, equal_nan=True)


def test_penalties(device: torch.device) -> None:
    from shoal.kernels.gpu.penalties import penalize

    random = generator(4)
    found = torch.randn(ROWS + 2, 500, generator=random).to(device)
    right = found.clone()
    ids = torch.randint(0, 40, (ROWS, 90), generator=random).int()
    ids[0, 0] = 10_000
    prompt = torch.randint(1, 50, (ROWS,), generator=random)
    tokens = prompt + torch.randint(0, 40, (ROWS,), generator=random)
    factors = [torch.rand(ROWS, generator=random) * 2 - 0.9 for _ in range(3)]
    factors[0] = factors[0].abs() + 0.5
    rows = torch.arange(ROWS).flip(0) + 1
    given = [t.to(device) for t in (rows, ids, prompt, tokens, *factors)]
    penalize(found, *given)
    sampling.penalize(right, *given)
    assert torch.equal(found, right)
