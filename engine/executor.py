"""The seam between the loop and whoever computes: this process, or ranks elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from .errors import WorkerLost
from .plan import CacheSpec, Plan, Result
from .request import RankState

if TYPE_CHECKING:
    from .config import EngineConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What start-up found out; nothing of it is ever written back into a config.

    `groups[g]` is the spec of cache group g and `num_blocks[g]` how many blocks it has, block 0
    (never handed out) included. `step_tokens` is the token budget of a step, `prompt_tokens` how
    many of these prompts may have (None: all). `digest` names the weights: two engines of equal
    digest give equal text, but for rounding. `overlaps`: the device computes by itself while the
    host plans. `table` is the sizing report, label and value a line. `phases`: seconds spent, by
    name.
    """

    groups: tuple[CacheSpec, ...]
    num_blocks: tuple[int, ...]
    block_size: int
    max_model_len: int
    step_tokens: int
    vocab_size: int
    eos_token_ids: frozenset[int]
    dtype: str
    device: str
    digest: str
    prompt_tokens: int | None = None
    overlaps: bool = False
    table: tuple[tuple[str, str], ...] = ()
    phases: tuple[tuple[str, float], ...] = ()


class Executor(Protocol):
    """Runs plans in order. `depth` plans may be under way at once.

    `resident`: a sampled token stays where the next plan needs it, so that a row may be in flight
    twice; otherwise the host sends each token back (`Row.tokens`) once it has seen it.
    """

    depth: int
    resident: bool

    def start(self, config: EngineConfig) -> Capacity:
        """Load the model, size the cache, and say what came of it.

        Raises ConfigError, LoadError.
        """
        ...

    def watch(self, on_lost: Callable[[WorkerLost], None]) -> None:
        """Once started: have `on_lost` called, on any thread, when a rank is lost though nobody
        collects.
        """
        ...

    def ranks(self) -> list[RankState]:
        """Who the ranks are and how far they have come, as far as is known; for any thread."""
        ...

    def submit(self, plan: Plan) -> None:
        """Queue a plan; returns at once where depth > 1."""
        ...

    def supply(self, step: int, masks: object) -> None:
        """Hand in what the submitted plan `step` announced and the host had not ready.

        Only its sampler waits for it.
        """
        ...

    def collect(self) -> Result:
        """The result of the oldest plan under way. Raises WorkerLost."""
        ...

    def call(self, method: str, *args: object) -> list[object]:
        """Run a control method on every rank, behind the plans submitted so far.

        One answer a rank.
        """
        ...

    def close(self) -> None:
        """Free everything; harmless when repeated."""
        ...
