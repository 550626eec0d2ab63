"""The grid of a comparison: how many streams, how long a prompt, how much of it shared."""

from __future__ import annotations

import itertools
import statistics
from dataclasses import asdict, dataclass
from random import Random
from typing import Any

LOWEST_ID, HIGHEST_ID = 300, 150_000
WARM_PROMPT_TOKENS = 8192


@dataclass(frozen=True)
class Cell:
    """`streams` prompts at once of `input_len` tokens, the first `shared` alike, so many out."""

    streams: int
    input_len: int
    shared: int = 0
    output_len: int = 64

    @property
    def num_warm(self) -> int:
        """How many prompts warm it up: all, or as many as fill several of a side's steps."""
        return min(self.streams, max(8, WARM_PROMPT_TOKENS // self.input_len))

    def __str__(self) -> str:
        of = f", {self.shared} shared" if self.shared else ""
        return f"{self.streams} x {self.input_len}{of}"

    def prompts(self, number: int, vocab_size: int) -> list[list[int]]:
        """The prompts of a round; both sides get the same, no round those of another."""
        high = min(HIGHEST_ID, vocab_size)
        low = min(LOWEST_ID, high // 2)

        def draw(random: Random, num: int) -> list[int]:
            return [random.randrange(low, high) for _ in range(num)]

        shared = draw(Random(f"shared {self.input_len}"), self.shared)
        random = Random(f"{self.streams} {self.input_len} {self.shared} {number}")
        fresh = self.input_len - self.shared
        return [shared + draw(random, fresh) for _ in range(self.streams)]


def grid(streams: list[int], input_lens: list[int], output_len: int, shared: bool) -> list[Cell]:
    """All cells; with `shared` each prompt length also with 15 of 16 tokens in common.

    Those without a shared prefix come first, so that a peer has to be started anew only once.
    """
    plain = itertools.product([0, 15] if shared else [0], input_lens, streams)
    return [Cell(count, length, part * length // 16, output_len) for part, length, count in plain]


def figures(arrivals: list[list[float]], output_len: int) -> dict[str, Any]:
    """Tokens a second, and what a stream's user sees, in milliseconds."""
    duration = max(times[-1] for times in arrivals)
    firsts = sorted(1000 * times[0] for times in arrivals)
    tpots = sorted(1000 * (t[-1] - t[0]) / max(1, output_len - 1) for t in arrivals)
    return {
        "duration_s": duration,
        "output_tokens_per_s": len(arrivals) * output_len / duration,
        "ttft_ms": statistics.median(firsts),
        "ttft_last_ms": firsts[-1],
        "tpot_ms": statistics.median(tpots),
    }


def middle(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """The median of each figure over the rounds."""
    return {name: statistics.median(r[name] for r in rounds) for name in rounds[0]}


def described(cell: Cell) -> dict[str, int]:
    """A cell as results hold it."""
    return asdict(cell)
