"""How long prompts and answers are: fixed, drawn evenly round a length, or as in ShareGPT."""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random
from typing import NamedTuple


class Lengths(NamedTuple):
    """Tokens of one prompt and of its answer."""

    input: int
    output: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LogNormal:
    """A log-normal length, drawn again while it is outside `low` to `high`."""

    median: float
    sigma: float
    low: int = 4
    high: int = 2048

    def draw(self, random: Random) -> int:
        """One length."""
        while True:
            length = round(random.lognormvariate(math.log(self.median), self.sigma))
            if self.low <= length <= self.high:
                return length


SHAREGPT_INPUT = LogNormal(median=91, sigma=1.4, high=1024)
SHAREGPT_OUTPUT = LogNormal(median=258, sigma=0.9, high=1536)
"""Fitted to the means of ShareGPT's conversations that the PagedAttention paper gives (Kwon et al.,
2023: 161 tokens in, 338 out), with the long tails of such chats."""


def sharegpt(random: Random, longest: int = 2048) -> Lengths:
    """The lengths of one turn of a chat, at most `longest` together."""
    while True:
        drawn = Lengths(SHAREGPT_INPUT.draw(random), SHAREGPT_OUTPUT.draw(random))
        if sum(drawn) <= longest:
            return drawn


def around(random: Random, length: int, ratio: float) -> int:
    """Evenly from `length` (1 - ratio) to `length` (1 + ratio), at least 1."""
    if not ratio:
        return length
    return max(1, random.randint(math.floor(length * (1 - ratio)), math.ceil(length * (1 + ratio))))
