"""The ops of sampling and their contracts, a part of `ops`.

S rows of logits over a vocabulary of V, of which an op may take R. A row's result is a function of
that row alone.
"""

from __future__ import annotations

from torch import Tensor

from .choice import backend as _backend


def keyed_uniform(key: Tensor, position: Tensor, sibling: Tensor, draw: int = 0) -> Tensor:
    """The uniform number in [0, 1) of one draw: [R] float64 with 53 random bits.

    key, position, sibling [R] int64: Philox4x32-10 of that key, counter (position, draw, sibling,
    0). Source: Parallel Random Numbers: As Easy as 1, 2, 3 (Salmon et al., 2011).
    """
    return _backend("keyed_uniform", key)(key, position, sibling, draw)  # type: ignore[no-any-return]


def temper(logits: Tensor, rows: Tensor, top: Tensor, temperature: Tensor) -> Tensor:
    """`(logits[rows] - top) / temperature`: logits [S, V], top, temperature [R] float32; fresh."""
    return _backend("temper", logits)(logits, rows, top, temperature)  # type: ignore[no-any-return]


def greatest(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Each row's greatest value [S] and the first id that has it [S] int64; NaN is the greatest."""
    return _backend("greatest", logits)(logits)  # type: ignore[no-any-return]


def log_softmax(x: Tensor) -> Tensor:
    """Log probabilities of the rows of x [R, V] float32, a fresh tensor."""
    return _backend("log_softmax", x)(x)  # type: ignore[no-any-return]


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

    logits [S, V] float32; rows [R] int64, which of S, each once; allowed [A, W] int32, W at least
    V / 32: bit i of word w is set where token 32 w + i may be sampled; which [R] int64, a row's
    mask among A, -1 where all are allowed; starts [R + 1] int64: row r has the edits starts[r] to
    starts[r + 1] of ids [E] int32, each once a row and rising, and amounts [E] float32, which are
    added, but -inf leaves -inf whatever was there. What is not allowed is -inf, biased or not.
    """
    return _backend("mask", logits)(  # type: ignore[no-any-return]
        logits, rows, allowed, which, starts, ids, amounts
    )


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

    logits [S, V] float32; rows [R] int64, which of S, each once; ids [R, L] int, of which the first
    num_tokens [R] (at least 1) count and the first num_prompt [R] are the prompt; the penalties [R]
    float32. Repetition looks at prompt and output, the others at output alone.
    Source: CTRL (Keskar et al., 2019) for repetition, the OpenAI API for the others.
    """
    _backend("penalize", logits)(
        logits, rows, ids, num_prompt, num_tokens, repetition, frequency, presence
    )


def draw_any(x: Tensor, u: Tensor) -> Tensor:
    """A token of each row by probability softmax(x): [R] int64.

    x [R, V] float32, 0 at the greatest of each row and -inf where a token is not allowed; u [R]
    float64 in [0, 1). Inverse of the cumulative distribution in the order of token ids. A row of
    NaN yields some id inside the vocabulary, which means nothing.
    """
    return _backend("draw_any", x)(x, u)  # type: ignore[no-any-return]


def draw_cut(
    x: Tensor, u: Tensor, top_k: Tensor, most: int, min_p: Tensor, top_p: Tensor
) -> Tensor:
    """A token of each row among those that min_p, then top_k, then top_p leave: [R] int64.

    x, u as in `draw_any`; top_k [R] int64, 0 for all, `most` the greatest of them; min_p, top_p [R]
    float32, one of top_k and min_p not 0. min_p is relative to the greatest probability. Tokens
    equal to the k-th are all kept. top_p keeps the shortest run from the top, by descending value
    and then ascending id, whose share of what is left reaches it. Drawn in that order.
    """
    return _backend("draw_cut", x)(x, u, top_k, most, min_p, top_p)  # type: ignore[no-any-return]


def draw_nucleus(x: Tensor, u: Tensor, top_p: Tensor) -> Tensor:
    """A token of each row among those that top_p alone leaves; otherwise as `draw_cut`."""
    return _backend("draw_nucleus", x)(x, u, top_p)  # type: ignore[no-any-return]


def top_tokens(values: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Ids [R, m] int64 and values [R, m] of the `most` greatest of each row, m at most `most`.

    values [R, V] float32. By descending value and then ascending id; at -inf an id means nothing.
    """
    return _backend("top_tokens", values)(values, most)  # type: ignore[no-any-return]


def count_above(values: Tensor, bounds: Tensor) -> Tensor:
    """How many of values [R, V] are greater than each of bounds [R, C] of the row: [R, C] int64."""
    return _backend("count_above", values)(values, bounds)  # type: ignore[no-any-return]
