"""Sampling of one row in plain Python: slow, by the book, and written without looking at torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

from shoal.engine.request import SamplingParams

WORD = 0xFFFFFFFF


def philox(counter: Sequence[int], key: tuple[int, int]) -> tuple[int, ...]:
    """Philox4x32-10 as the paper states it, in whole numbers."""
    c, k = list(counter), list(key)
    for _ in range(10):
        first, second = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [
            (second >> 32) ^ c[1] ^ k[0],
            second & WORD,
            (first >> 32) ^ c[3] ^ k[1],
            first & WORD,
        ]
        k = [(k[0] + 0x9E3779B9) & WORD, (k[1] + 0xBB67AE85) & WORD]
    return tuple(c)


def uniform(seed: int, position: int, sibling: int) -> float:
    """The number that a draw is made by, for a seed of 64 bits."""
    words = philox((position, 0, sibling, 0), (seed & WORD, seed >> 32))
    return ((words[0] >> 5) * 2**26 + (words[1] >> 6)) / 2**53


def edited(
    logits: Sequence[float],
    params: SamplingParams,
    prompt: Sequence[int],
    emitted: Sequence[int],
    eos: frozenset[int],
) -> list[float]:
    """Logits after everything that comes before the temperature."""
    row = list(logits)
    if params.allowed_token_ids is not None:
        row = [x if i in params.allowed_token_ids else -math.inf for i, x in enumerate(row)]
    for *beginning, last in params.bad_words_ids:
        if list(emitted[len(emitted) - len(beginning) :]) == beginning:
            row[last] = -math.inf
    for token, amount in (params.logit_bias or {}).items():
        row[token] += amount
    if len(emitted) < params.min_tokens:
        for token in eos | set(params.stop_token_ids or ()):
            row[token] = -math.inf
    for token in set(prompt) | set(emitted):
        factor = params.repetition_penalty
        row[token] = row[token] / factor if row[token] > 0 else row[token] * factor
    for token in set(emitted):
        row[token] -= params.frequency_penalty * list(emitted).count(token)
        row[token] -= params.presence_penalty
    for processor in params.logits_processors or ():
        row = processor(list(emitted), row)
    return row


def choose(row: Sequence[float], params: SamplingParams, u: float) -> int:
    """The token that `u` picks from edited logits."""
    if params.temperature < 1e-5:
        return max(range(len(row)), key=lambda i: (row[i], -i))
    top, top_k = max(row), params.top_k if params.top_k < len(row) else 0
    weight = [math.exp((x - top) / params.temperature) for x in row]
    order = list(range(len(row)))
    kept = [i for i in order if weight[i] > 0 and weight[i] >= params.min_p]
    if top_k:
        bound = sorted((weight[i] for i in kept), reverse=True)[:top_k][-1]
        kept = [i for i in kept if weight[i] >= bound]
    if top_k or params.min_p or params.top_p < 1:
        kept.sort(key=lambda i: (-weight[i], i))
    if params.top_p < 1:
        total, before, nucleus = sum(weight[i] for i in kept), 0.0, []
        for token in kept:
            if before >= params.top_p * total:
                break
            nucleus.append(token)
            before += weight[token]
        kept = nucleus
    target, upto = u * sum(weight[i] for i in kept), 0.0
    for token in kept:
        upto += weight[token]
        if upto > target:
            return token
    return kept[-1]
