"""Plans that mean nothing, run before the first request.

What a device makes ready when it is first asked for (kernels are compiled, libraries open, ranks
find each other) would come out of that request's time to its first token, and look like a stall.
"""

from __future__ import annotations

from ..plan import Plan, Row, Start
from ..request import SamplingParams

NOWHERE = 0
"""The block that nobody is given: its content means nothing."""

PARAMS = (
    SamplingParams(
        temperature=1.0,
        top_k=2,
        repetition_penalty=1.5,
        logit_bias={0: 1.0},
        allowed_token_ids=[0, 1],
        seed=0,
    ),
    SamplingParams(temperature=1.0, seed=0),
)
"""What takes every way through sampling that has kernels of its own."""


def rehearsal(
    num_slots: int, num_groups: int, num_tokens: int, block_size: int
) -> tuple[Plan, ...]:
    """A prompt of `num_tokens` and one of a token where there are slots for both; the first one's
    next token, as decode computes few rows by programs of its own; then none.
    """
    lengths = (num_tokens, 1)[:num_slots]
    started = tuple(
        Start(slot, (0,) * length, length, _nowhere(length, num_groups, block_size), PARAMS[slot])
        for slot, length in enumerate(lengths)
    )
    rows = tuple(Row(slot, 0, length, (), True) for slot, length in enumerate(lengths))
    return (
        Plan(step=-1, started=started, rows=rows),
        Plan(step=-1, rows=(Row(0, num_tokens, 1, (), True, (0,)),)),
        Plan(step=-1, stopped=tuple(range(len(lengths)))),
    )


def _nowhere(length: int, num_groups: int, block_size: int) -> tuple[tuple[int, ...], ...]:
    """Blocks of a text, and one for what is drawn behind it."""
    return ((NOWHERE,) * (length // block_size + 1),) * num_groups
