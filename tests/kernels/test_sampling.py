"""The sampling ops, against published vectors and plain Python."""

from __future__ import annotations

import math
import random

import pytest
import torch
from shoal.kernels import sampling as ops

# From the known-answer file of the Random123 library: counter, key, result.
KNOWN = [
    ((0,) * 4, (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN)
def test_philox_meets_the_published_vectors(counter, key, result):
    words = [torch.tensor([word, word]) for word in counter]
    keys = torch.tensor([signed(key[1] << 32 | key[0])] * 2)
    found = ops.philox(tuple(words), keys)
    assert [word.tolist() for word in found] == [[word] * 2 for word in result]


def test_uniforms_are_uniform_and_keyed():
    position = torch.arange(20_000)
    key, sibling = torch.full_like(position, 7), torch.zeros_like(position)
    u = ops.keyed_uniform(key, position, sibling)
    assert u.min() >= 0 and u.max() < 1
    counts = torch.histc(u, bins=20, min=0, max=1)
    assert float(((counts - 1000) ** 2 / 1000).sum()) < 43.8  # 19 degrees of freedom, 0.1 %
    assert not torch.equal(u, ops.keyed_uniform(key + 1, position, sibling))
    assert not torch.equal(u, ops.keyed_uniform(key, position, sibling + 1))
    assert not torch.equal(u, ops.keyed_uniform(key, position, sibling, draw=1))


def scaled(rows: int, vocab: int, spread: float, seed: int) -> torch.Tensor:
    logits = torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * spread
    return logits - logits.amax(-1, keepdim=True)


@pytest.mark.parametrize("vocab", [1, 5, 128, 129, 1000])
def test_draw_any_inverts_the_cumulative_distribution(vocab):
    x = scaled(64, vocab, 2.0, vocab)
    u = torch.rand(64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    drawn = ops.draw_any(x, u)
    upto = x.double().softmax(-1).cumsum(-1)
    for row, token in enumerate(drawn.tolist()):
        before = float(upto[row, token - 1]) if token else 0.0
        assert before - 1e-6 <= float(u[row]) <= float(upto[row, token]) + 1e-6


def test_a_token_without_weight_is_never_drawn():
    x = torch.full((3, 300), -torch.inf)
    x[0, 299] = x[1, 0] = x[2, 150] = 0.0
    ones = torch.ones(3)
    for u in (0.0, 0.5, 1 - 2.0**-53):
        u = torch.full((3,), u, dtype=torch.float64)
        assert ops.draw_any(x, u).tolist() == [299, 0, 150]
        top_k = torch.tensor([5, 0, 300])
        assert ops.draw_cut(x, u, top_k, 300, ones * 0, ones).tolist() == [299, 0, 150]
        assert ops.draw_nucleus(x, u, ones * 0.9).tolist() == [299, 0, 150]


@pytest.mark.parametrize("spread", [0.01, 0.5, 6.0])
@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.999])
def test_the_nucleus_is_the_same_with_and_without_the_early_cut(spread, top_p):
    x = scaled(16, 3000, spread, 3)
    u = torch.rand(16, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    p, zero = torch.full((16,), top_p), torch.zeros(16)
    whole = ops.draw_cut(x, u, zero.long(), 0, zero, p)
    assert torch.equal(ops.draw_nucleus(x, u, p), whole)


def test_equal_tokens_are_ordered_by_id():
    values = torch.tensor([[1.0, 3.0, 3.0, 2.0, 3.0, 2.0]])
    ids, kept = ops.top_tokens(values, 4)
    assert ids.tolist() == [[1, 2, 4, 3]] and kept.tolist() == [[3.0, 3.0, 3.0, 2.0]]


def test_what_is_masked_is_not_among_the_top():
    values = torch.tensor([[-torch.inf, 0.0, -torch.inf], [1.0, 2.0, 3.0]])
    ids, kept = ops.top_tokens(values, 3)
    assert kept.tolist() == [[0.0, -math.inf, -math.inf], [3.0, 2.0, 1.0]]
    assert ids[1].tolist() == [2, 1, 0] and ids[0, 0] == 1


def test_counts_of_what_is_greater():
    values = torch.tensor([[1.0, 3.0, 3.0, -2.0], [-torch.inf, math.nan, 0.0, 5.0]])
    bounds = torch.tensor([[3.0, 1.0, -9.0], [math.nan, -torch.inf, 0.0]])
    assert ops.count_above(values, bounds).tolist() == [[0, 2, 4], [0, 2, 1]]


def test_masks_by_hand():
    before = torch.randn(4, 70, generator=torch.Generator().manual_seed(0))
    before[3, 9] = math.nan
    logits = before.clone()
    allowed = torch.zeros(2, 3, dtype=torch.int32)
    allowed[1] = torch.tensor([1 << 5 | 1 << 9, -(1 << 31), 1 << 1])  # 5, 9, 63, 65
    broken = ops.mask(
        logits,
        torch.tensor([3, 0, 2]),
        allowed,
        torch.tensor([1, -1, 1]),
        torch.tensor([0, 2, 5, 5]),
        torch.tensor([5, 9, 0, 5, 69], dtype=torch.int32),
        torch.tensor([2.5, -math.inf, -math.inf, 1.0, -2.0]),
    )
    assert broken.tolist() == [True, False, False]
    for row, kept, edits in (
        (3, {5, 9, 63, 65}, {5: 2.5, 9: -math.inf}),
        (0, {*range(70)}, {0: -math.inf, 5: 1.0, 69: -2.0}),
        (1, {*range(70)}, {}),
        (2, {5, 9, 63, 65}, {}),
    ):
        for token in range(70):
            right = before[row, token] + edits.get(token, 0.0)
            if token not in kept or edits.get(token) == -math.inf:
                right = torch.tensor(-math.inf)
            assert logits[row, token] == right, (row, token)


def test_penalties_by_hand():
    random.seed(0)
    vocab, rows = 50, 6
    logits = torch.randn(rows + 2, vocab, generator=torch.Generator().manual_seed(0))
    before, chosen = logits.clone(), [0, 2, 3, 5, 6, 7]
    lengths = [random.randint(1, 40) for _ in range(rows)]
    prompts = [random.randint(0, length) for length in lengths]
    ids = torch.randint(0, vocab, (rows, 40), generator=torch.Generator().manual_seed(1))
    ids[:, -1] = 10**6  # what lies past a row's tokens may be anything
    lengths = [min(length, 39) for length in lengths]
    penalties = torch.rand(3, rows, generator=torch.Generator().manual_seed(2)) + 0.5
    ops.penalize(
        logits,
        torch.tensor(chosen),
        ids,
        torch.tensor(prompts),
        torch.tensor(lengths),
        *penalties,
    )
    for i, row in enumerate(chosen):
        expected = before[row].tolist()
        tokens = ids[i, : lengths[i]].tolist()
        repetition, frequency, presence = penalties[:, i].tolist()
        for token in set(tokens):
            value = expected[token]
            expected[token] = value / repetition if value > 0 else value * repetition
        for token in set(tokens[prompts[i] :]):
            expected[token] -= frequency * tokens[prompts[i] :].count(token) + presence
        torch.testing.assert_close(logits[row], torch.tensor(expected))
    for row in {*range(rows + 2)} - {*chosen}:
        assert torch.equal(logits[row], before[row])
