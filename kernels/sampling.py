"""Ops of sampling in plain torch: keyed uniforms, penalties, draws, and the top of a row.

A row's result is a function of that row alone: every reduction runs within a row, in an order that
its own content and parameters fix, so the company it keeps in a batch cannot change what is drawn.
`x` below are scaled logits, [R, V] float32 with a greatest value of 0 in each row and -inf where a
token is not allowed. A row of NaN yields some id inside the vocabulary, which means nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_BLOCK = 128
_LOWEST = torch.finfo(torch.float32).min
_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: Tensor) -> tuple[Tensor, ...]:
    """Philox4x32-10: four random words [R] int64 of 32 bits for each counter and key.

    Shapes: four counter words [R] int64 below 2**32; key [R] int64, all 64 bits of it used.
    Source: Parallel Random Numbers: As Easy as 1, 2, 3 (Salmon et al., 2011).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key & _WORD, (key >> 32) & _WORD
    for _ in range(10):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c2 = ((p1 >> 32) & _WORD) ^ c1 ^ k0, ((p0 >> 32) & _WORD) ^ c3 ^ k1
        c1, c3 = p1 & _WORD, p0 & _WORD
        k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
    return c0, c1, c2, c3


def keyed_uniform(key: Tensor, position: Tensor, sibling: Tensor, draw: int = 0) -> Tensor:
    """The uniform number in [0, 1) of one draw: [R] float64 with 53 random bits.

    Shapes: key, position, sibling [R] int64. Philox counter: (position, draw, sibling, 0).
    """
    counter = (position, torch.full_like(position, draw), sibling, torch.zeros_like(position))
    high, low, _, _ = philox(counter, key)
    return ((high >> 5) * 2**26 + (low >> 6)).double() * 2.0**-53


def temper(logits: Tensor, rows: Tensor, top: Tensor, temperature: Tensor) -> Tensor:
    """`(logits[rows] - top) / temperature`, a fresh tensor [R, V].

    Shapes: logits [S, V] float32; rows [R] int64; top, temperature [R] float32.
    """
    return logits.index_select(0, rows).sub_(top[:, None]).div_(temperature[:, None])


def greatest(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The greatest value of each row and the first id that has it; NaN is the greatest of all."""
    top, tokens = logits.max(-1)
    return top, tokens


def log_softmax(x: Tensor) -> Tensor:
    """Log probabilities of the rows of x [R, V] float32, a fresh tensor."""
    return torch.log_softmax(x, -1)


def mask(
    logits: Tensor,
    rows: Tensor,
    allowed: Tensor,
    which: Tensor,
    starts: Tensor,
    ids: Tensor,
    amounts: Tensor,
) -> Tensor:
    """Allowed ids, then bias and bans, for some rows, in place; whether each had a NaN: [R] bool.

    The contract is in `ops`.
    """
    value = logits.index_select(0, rows)
    broken = value.isnan().any(-1)
    if len(allowed):
        bit = torch.arange(32, dtype=torch.int32, device=logits.device)
        words = allowed.index_select(0, which.clamp_min(0))
        kept = ((words[:, :, None] >> bit) & 1).bool().flatten(1)[:, : value.shape[1]]
        value.masked_fill_(~kept & (which >= 0)[:, None], -torch.inf)
    row = torch.arange(len(rows), device=ids.device)
    row = row.repeat_interleave(starts.diff(), output_size=len(ids))
    edited = torch.where(amounts == -torch.inf, amounts, value[row, ids] + amounts)
    logits[rows] = value.index_put_((row, ids), edited)
    return broken


def penalize(
    logits: Tensor,
    rows: Tensor,
    ids: Tensor,
    num_prompt: Tensor,
    num_tokens: Tensor,
    repetition: Tensor,
    frequency: Tensor,
    presence: Tensor,
) -> None:
    """Repetition, frequency and presence penalties, in this order, for some rows, in place.

    Shapes: logits [S, V] float32; rows [R] int64, which of S; ids [R, L] int, of which the first
    num_tokens [R] (at least 1) count and the first num_prompt [R] are the prompt; the penalties [R]
    float32. Repetition looks at prompt and output, the others at output alone. Costs L a row, and L
    log L where output is counted.
    Source: CTRL (Keskar et al., 2019) for repetition, the OpenAI API for the others.
    """
    vocab_size = logits.shape[1]
    place = torch.arange(ids.shape[1], device=ids.device)
    known = place < num_tokens[:, None]
    index = torch.where(known, ids, ids[:, :1]).long().clamp(0, vocab_size - 1)
    value, factor = logits[rows[:, None], index], repetition[:, None]
    value = torch.where(value > 0, value / factor, value * factor)
    if bool((frequency != 0).any() | (presence != 0).any()):
        output = known & (place >= num_prompt[:, None])
        emitted = torch.where(output, index, vocab_size).sort(-1).values
        count = torch.searchsorted(emitted, index, right=True) - torch.searchsorted(emitted, index)
        value = value - frequency[:, None] * count - presence[:, None] * (count > 0)
    logits[rows[:, None], index] = value


def draw_any(x: Tensor, u: Tensor) -> Tensor:
    """A token of each row by probability softmax(x): [R] int64.

    u [R] float64 in [0, 1). Inverse of the cumulative distribution in the order of token ids:
    sums of 128 ids in float32, their cumulative sum in float64, then inside one block the same.
    """
    weight = torch.softmax(x, -1)
    weight = F.pad(weight, (0, -weight.shape[1] % _BLOCK)).view(len(x), -1, _BLOCK)
    upto = weight.sum(-1).cumsum(-1, dtype=torch.float64)
    target = u * upto[:, -1]
    block = _first_above(upto, target)
    before = F.pad(upto, (1, 0)).gather(1, block[:, None])[:, 0]
    inside = weight[torch.arange(len(x), device=x.device), block].double()
    return block * _BLOCK + _choose(inside, inside.cumsum(-1), target - before)


def draw_cut(
    x: Tensor, u: Tensor, top_k: Tensor, most: int, min_p: Tensor, top_p: Tensor
) -> Tensor:
    """A token of each row among those that min_p, then top_k, then top_p leave: [R] int64.

    Shapes: u [R] float64; top_k [R] int64, 0 for all, `most` the greatest of them; min_p, top_p [R]
    float32. min_p is relative to the greatest probability. Tokens equal to the k-th are all kept.
    top_p keeps the shortest run from the top, by descending value and then ascending id, whose
    share of what is left reaches it. Drawn in that order, with sums in float64.
    """
    floor = min_p.log()
    if most:
        most = min(most, x.shape[1])
        kth = x.topk(most).values.gather(1, top_k.clamp(1, most)[:, None] - 1)[:, 0]
        floor = torch.where((top_k > 0) & ~(kth < floor), kth, floor)
    return _draw_above(x, floor, None, top_p, u)


def draw_nucleus(x: Tensor, u: Tensor, top_p: Tensor) -> Tensor:
    """A token of each row among those that top_p alone leaves: [R] int64; otherwise as `draw_cut`.

    The tokens each less probable than (1 - top_p) / V weigh less than 1 - top_p together, so none
    of them is in the nucleus: only the others are sorted.
    """
    greatest = torch.softmax(x, -1).amax(-1)
    floor = ((1 - top_p) / x.shape[1] / greatest).log() - 1e-3
    return _draw_above(x, floor, greatest.double().reciprocal(), top_p, u)


def top_tokens(values: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Ids [R, m] int64 and values [R, m] of the `most` greatest of each row, m at most `most`.

    values [R, V] float32. By descending value and then ascending id; -inf fills what is missing.
    """
    kth = values.topk(min(most, values.shape[1])).values[:, -1]
    ids, kept = _sorted_above(values, kth)
    return ids[:, :most], kept[:, :most]


def count_above(values: Tensor, bounds: Tensor) -> Tensor:
    """How many values of its row are greater than each bound: [R, C] int64.

    values [R, V], bounds [R, C] float32. NaN is greater than nothing, and nothing than NaN.
    """
    return torch.stack([(values > bound[:, None]).sum(-1) for bound in bounds.T], -1)


def _draw_above(x: Tensor, floor: Tensor, total: Tensor | None, top_p: Tensor, u: Tensor) -> Tensor:
    """Draw among the tokens of at least `floor`; `total` is the weight that top_p is a share of."""
    ids, values = _sorted_above(x, floor)
    weight = values.double().exp()
    upto = weight.cumsum(-1)
    total = upto[:, -1] if total is None else total
    limit = torch.where(top_p < 1, top_p.double() * total, torch.inf)
    weight = torch.where(upto - weight < limit[:, None], weight, 0.0)
    upto = weight.cumsum(-1)
    return ids.gather(1, _choose(weight, upto, u * upto[:, -1])[:, None])[:, 0]


def _sorted_above(x: Tensor, floor: Tensor) -> tuple[Tensor, Tensor]:
    """Ids and values of the entries of at least `floor`, by descending value then ascending id.

    As wide as the longest row; id 0 and value -inf fill the others.
    """
    row, token = (x >= floor.clamp_min(_LOWEST)[:, None]).nonzero(as_tuple=True)
    count = torch.bincount(row, minlength=len(x))
    width = max(int(count.max()), 1)
    column = torch.arange(len(row), device=x.device) - (count.cumsum(0) - count)[row]
    ids = torch.zeros(len(x), width, dtype=torch.int64, device=x.device)
    values = torch.full((len(x), width), -torch.inf, dtype=x.dtype, device=x.device)
    ids[row, column] = token
    values[row, column] = x[row, token]
    values, order = values.sort(dim=-1, descending=True, stable=True)
    return ids.gather(1, order), values


def _first_above(upto: Tensor, target: Tensor) -> Tensor:
    """Where a row of rising sums first exceeds its target; the last place if nowhere."""
    index = torch.searchsorted(upto, target[:, None], right=True)[:, 0]
    return index.clamp_max(upto.shape[1] - 1)


def _choose(weight: Tensor, upto: Tensor, target: Tensor) -> Tensor:
    """The place whose share of the cumulative sum holds the target: never one of no weight."""
    last = weight.shape[1] - 1 - (weight > 0).flip(1).to(torch.uint8).argmax(1)
    return torch.minimum(_first_above(upto, target), last)
