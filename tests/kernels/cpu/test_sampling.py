"""Sampling over the vocabulary: token for token what the ops in torch draw."""

from __future__ import annotations

import pytest
import torch
from shoal.kernels import sampling
from shoal.kernels.cpu import bindings
from shoal.kernels.cpu import sampling as native
from shoal.kernels.cpu.bindings import Pool
from shoal.kernels.cpu.threads import current_pool, pool_for, using
from torch import Tensor

from ..masks import masked
from .steps import draw

torch.set_num_threads(1)
pytestmark = pytest.mark.usefixtures("instructions")

VOCABULARIES = [1, 127, 128, 1000, 5003]


def scaled(rows: int, vocabulary: int, spread: float, masked: float = 0.0) -> Tensor:
    """Logits with many equal ones, 0 at the top of each row, some not allowed."""
    x = (draw(rows, vocabulary) * spread * 8).round() / 8
    hidden = draw(rows, vocabulary, seed=1).abs() < masked
    x = x.masked_fill(hidden, -torch.inf)
    x[:, vocabulary // 2] = x.nan_to_num(neginf=0).amax(-1)
    return x - x.amax(-1, keepdim=True)


def uniforms(rows: int) -> Tensor:
    index = torch.arange(rows)
    return sampling.keyed_uniform(index * 31 - 5, index * 7, index % 3)


def test_ops_run_on_the_library_under_test() -> None:
    assert current_pool()._native is pool_for(1)._native is bindings.loaded()


def test_uniforms() -> None:
    index = torch.arange(50)
    keys = torch.tensor([-1, 0, 1, 2**63 - 1, -(2**63)]).repeat(10)
    for nth in (0, 3):
        right = sampling.keyed_uniform(keys, index * 1000, index, nth)
        assert torch.equal(native.keyed_uniform(keys, index * 1000, index, nth), right)


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("spread", [0.0, 1.0, 5.0])
@pytest.mark.parametrize("masked", [0.0, 0.9])
def test_draws(vocabulary: int, spread: float, masked: float) -> None:
    rows = 60
    x, u = scaled(rows, vocabulary, spread, masked), uniforms(rows)
    u[:3] = torch.tensor([0.0, 0.50317, 0.99837])
    assert torch.equal(native.draw_any(x, u), sampling.draw_any(x, u))
    row = torch.arange(rows)
    top_p = torch.tensor([0.1, 0.5, 0.9, 0.999])[row % 4]
    assert torch.equal(native.draw_nucleus(x, u, top_p), sampling.draw_nucleus(x, u, top_p))
    top_k = torch.tensor([0, 1, 2, 40, 700])[row % 5]
    min_p = torch.tensor([0.0, 0.3, 0.01])[row % 3]
    top_p = torch.tensor([1.0, 0.7])[row % 2]
    args = (x, u, top_k, 700, min_p, top_p)
    assert torch.equal(native.draw_cut(*args), sampling.draw_cut(*args))


@pytest.mark.parametrize("aside", [-1e-10, 1e-10])
def test_draws_beside_the_border_between_two_tokens(aside: float) -> None:
    """Far nearer than float32 would tell them apart: weights and their sums are float64."""
    rows, most = 60, 20
    x = draw(rows, 300)
    x -= x.amax(-1, keepdim=True)
    upto = x.topk(most).values.double().exp().cumsum(-1)
    place = torch.arange(rows) % (most - 1)
    u = upto.gather(1, place[:, None])[:, 0] / upto[:, -1] * (1 + aside)
    ids = x.topk(most).indices.gather(1, place[:, None] + (aside > 0))[:, 0]
    args = (x, u, torch.full((rows,), most), most, torch.zeros(rows), torch.ones(rows))
    assert torch.equal(sampling.draw_cut(*args), ids)
    assert torch.equal(native.draw_cut(*args), ids)


def test_a_row_of_nan_or_nothing_stays_inside_the_vocabulary() -> None:
    u = torch.tensor([0.3, 0.9])
    for value in (torch.nan, -torch.inf):
        x = torch.full((2, 300), value)
        ones = torch.ones(2)
        for tokens in (
            native.draw_any(x, u.double()),
            native.draw_nucleus(x, u.double(), ones * 0.5),
            native.draw_cut(x, u.double(), torch.tensor([5, 0]), 5, ones * 0.1, ones),
        ):
            assert bool(((tokens >= 0) & (tokens < 300)).all())


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("most", [1, 5, 20, 400])
def test_top_tokens(vocabulary: int, most: int) -> None:
    for values in (scaled(7, vocabulary, 3.0), scaled(7, vocabulary, 0.0), draw(7, vocabulary)):
        ids, kept = native.top_tokens(values, most)
        right_ids, right_kept = sampling.top_tokens(values, most)
        assert torch.equal(kept, right_kept)
        assert torch.equal(ids, right_ids)


def test_rising_values_do_not_grow_what_is_kept() -> None:
    values = torch.arange(20_000.0)[None]
    ids, _ = native.top_tokens(values, 3)
    assert ids.tolist() == [[19_999, 19_998, 19_997]]


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_counts_of_what_is_greater(vocabulary: int) -> None:
    for values in (
        scaled(7, vocabulary, 3.0, 0.2),
        scaled(7, vocabulary, 0.0),
        draw(7, vocabulary),
    ):
        values[5, vocabulary // 3 :: 2] = torch.nan
        bounds = values[:, torch.arange(11) * 17 % vocabulary]
        bounds[2, 3], bounds[3, 4] = -torch.inf, torch.inf
        found = native.count_above(values, bounds)
        assert torch.equal(found, sampling.count_above(values, bounds))
        part = values[:, : 1 + vocabulary // 2]
        assert torch.equal(
            native.count_above(part, bounds[:, :1]), sampling.count_above(part, bounds[:, :1])
        )


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_temper_greatest_and_log_softmax(vocabulary: int) -> None:
    logits = draw(9, vocabulary) * 5
    logits[2, vocabulary // 2 :] = -torch.inf
    logits[3, vocabulary // 3 :] = torch.nan
    top, tokens = native.greatest(logits)
    right_top, right_tokens = sampling.greatest(logits)
    assert torch.equal(tokens, right_tokens)
    assert torch.equal(top.nan_to_num(9e9), right_top.nan_to_num(9e9))
    rows, temperature = torch.tensor([8, 0, 3]), torch.tensor([0.7, 1.0, 2.0])
    found = native.temper(logits, rows, top[rows], temperature)
    right = sampling.temper(logits, rows, top[rows], temperature)
    assert torch.equal(found.nan_to_num(9e9), right.nan_to_num(9e9))
    torch.testing.assert_close(
        native.log_softmax(logits), sampling.log_softmax(logits), equal_nan=True
    )


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("num_masks", [0, 2])
def test_masks(vocabulary: int, num_masks: int) -> None:
    logits, *edits = masked(vocabulary, num_masks)
    right = logits.clone()
    broken = native.mask(logits, *edits)
    assert torch.equal(broken, sampling.mask(right, *edits))
    assert broken.sum() == 1
    assert torch.equal(logits.nan_to_num(9e9), right.nan_to_num(9e9))


def test_penalties() -> None:
    vocabulary, length = 300, 90
    ids = (draw(5, length) * 40).abs().int()
    ids[0, 3], ids[1, 4] = -1, 10_000
    rows = torch.tensor([4, 0, 5, 2, 3])
    num_tokens = torch.tensor([1, 20, 90, 50, 50])
    num_prompt = torch.tensor([1, 5, 40, 50, 0])
    repetition = torch.tensor([1.0, 1.2, 0.8, 2.0, 1.5])
    for frequency, presence in ((0.0, 0.0), (0.3, 0.0), (0.1, -0.7)):
        amounts = (torch.full((5,), frequency), torch.full((5,), presence))
        found, right = draw(6, vocabulary), draw(6, vocabulary)
        args = (rows, ids, num_prompt, num_tokens, repetition, *amounts)
        native.penalize(found, *args)
        sampling.penalize(right, *args)
        assert torch.equal(found, right)


@pytest.mark.parametrize("rows", [1, 5])
def test_draws_are_the_same_on_one_thread_and_on_three(rows: int) -> None:
    x, u = scaled(rows, 300_000, 3.0), uniforms(rows)
    assert pool_for(x.numel()) is current_pool() is not pool_for(1)
    found = [_some(x, u)]
    for threads in (2, 3):
        pool = Pool(threads)
        with using(pool):
            found.append(_some(x, u))
        pool.close()
    assert all(torch.equal(one, other) for one, other in zip(found[0], found[1], strict=True))
    assert all(torch.equal(one, other) for one, other in zip(found[0], found[2], strict=True))


def _some(x: Tensor, u: Tensor) -> list[Tensor]:
    top_p = torch.full((len(x),), 0.9)
    drawn = [native.draw_any(x, u), native.draw_nucleus(x, u, top_p)]
    return [*drawn, *native.greatest(x), native.log_softmax(x)]
