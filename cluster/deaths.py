"""Engines that died under a choice: how many, and when the choice is to blame.

One that got stuck over its work counts as one that died.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..engine.errors import EngineLost, FatalRequest, ShoalError
from .state import Choice

SUSPECT_DEATHS = 2


def is_suspect(choices: Sequence[Choice]) -> bool:
    """Whether one of them may be what kills engines."""
    return deaths_here(choices) >= SUSPECT_DEATHS


def deaths_here(choices: Sequence[Choice]) -> int:
    """How many engines died under them without a token in between."""
    return max(choice.deaths_here for choice in choices)


def count_death(choices: Sequence[Choice], *, alone: bool, max_failovers: int) -> ShoalError | None:
    """Enter an engine's death; the error that ends the request, if this was one too many.

    `alone`: the engine computed nothing else.
    """
    for choice in choices:
        choice.deaths += 1
        choice.deaths_here += 1
    if alone:
        return FatalRequest(
            f"{deaths_here(choices)} engines died or got stuck while they computed this request, "
            "the last one while it computed nothing else; it is not tried again"
        )
    deaths = max(choice.deaths for choice in choices)
    if deaths > max_failovers:
        return EngineLost(
            f"{deaths} engines died or got stuck under this request; more than --max-failovers="
            f"{max_failovers} are not tried"
        )
    return None
