"""One step, as the scheduler tells it to the workers and as they answer.

Plans are diffs: workers keep rows by slot.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from .request import SamplingParams, TokenLogprobs


class CacheSpec(NamedTuple):
    """What one layer caches: keys and values of `num_kv_heads` heads of `head_size`, all of them or
    the last `window`.

    Layers of equal spec form a cache group, which has its own blocks. A token sees itself and the
    `window - 1` before.
    """

    num_kv_heads: int
    head_size: int
    window: int | None = None


class Candidate(NamedTuple):
    """A token that could come next.

    `score` is its log probability after bias, masks and penalties; `logprobs` are of the raw
    logits, with as many top ones as the sequence asked for.
    """

    token: int
    score: float
    logprobs: TokenLogprobs


class Start(NamedTuple):
    """A sequence enters the device row `slot`.

    Tokens after `num_prompt` were emitted before. `sibling` keys its draws. `candidates`: how many
    of the tokens that could come next its sampled rows report.
    """

    slot: int
    tokens: tuple[int, ...]
    num_prompt: int
    blocks: tuple[tuple[int, ...], ...]
    params: SamplingParams
    sibling: int = 0
    adapter: str | None = None
    candidates: int = 0


class Row(NamedTuple):
    """Compute `num_tokens` tokens of `slot` from position `start`; `sample` asks for the token
    after the last of them.

    `grown`: block ids appended to each cache group's table since the last plan; () where none are.
    `tokens`: ids at `start` that the device row lacks (empty where the worker sampled them itself);
    they replace what was sampled there.
    `draft`: guesses to verify after them.
    """

    slot: int
    start: int
    num_tokens: int
    grown: tuple[tuple[int, ...], ...]
    sample: bool
    tokens: tuple[int, ...] = ()
    draft: tuple[int, ...] = ()


class Copy(NamedTuple):
    """Copy block `source` to block `target` in one cache group, before the rows are computed.

    All copies of a plan read before any of them writes.
    """

    group: int
    source: int
    target: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What one step computes. `stopped` slots are free again before `started` ones are filled."""

    step: int
    stopped: tuple[int, ...] = ()
    started: tuple[Start, ...] = ()
    rows: tuple[Row, ...] = ()
    copies: tuple[Copy, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a step brought: for the plan's sampling rows, in their order, the 1..k+1 tokens each.

    `logprobs` has one tuple a sampled row, one entry a token, where the row asked for them (else an
    empty tuple); None when no row did. `prompt_logprobs`: slot to the log probabilities of the
    prompt tokens at positions `row.start + 1` onwards that this step scored. `candidates`: slot to
    what could follow, best first, for the sampled rows whose `Start` asked; their token is not
    taken. `failed`: slot to the reason why its row could not be computed or sampled; its tokens
    mean nothing.
    """

    step: int
    tokens: tuple[tuple[int, ...], ...]
    logprobs: tuple[tuple[TokenLogprobs, ...], ...] | None = None
    prompt_logprobs: dict[int, tuple[TokenLogprobs, ...]] = field(default_factory=dict)
    candidates: dict[int, tuple[Candidate, ...]] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
