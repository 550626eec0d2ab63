"""What a caller asks for and what comes back: plain data that crosses every process border."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from hashlib import blake2b
from typing import Any, NamedTuple

from .bounds import check, freeze


class FinishReason(StrEnum):
    """Why a sequence ended; the values are those of the OpenAI API, beside `abort` and `error`."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How to choose tokens and when to stop; names, defaults and meanings are those of vLLM.

    `top_k` 0 or -1 means all tokens. `temperature` below 1e-5 means greedy. `max_tokens` None means
    up to the context. `logprobs` and `prompt_logprobs` count alternatives beside the chosen token;
    -1 means the whole vocabulary. `logits_processors` are callables `(emitted ids, logits row) ->
    logits row`; they cannot leave the process. `bad_words_ids` is `bad_words` in token ids, filled
    in at the door, where the tokenizer is.

    `best_of` candidates are made and the `n` of the greatest cumulative log probability answered,
    best first. With `use_beam_search` it is the number of beams, and the n best sequences by
    cumulative log probability / length ** `length_penalty` are answered, as transformers'
    `num_beams`, `length_penalty` and `early_stopping` find them; nothing is drawn, so temperature
    must be 0, and neither top_p, top_k, min_p nor stop strings go with it. `truncate_prompt_tokens`
    keeps the last so many of the prompt, -1 as many as fit; it is the door's.

    Raises InvalidRequest naming the field.
    """

    n: int = 1
    best_of: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    use_beam_search: bool = False
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    stop: str | Sequence[str] | None = ()
    stop_token_ids: Sequence[int] | None = ()
    bad_words: Sequence[str] | None = ()
    bad_words_ids: Sequence[Sequence[int]] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    truncate_prompt_tokens: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    logit_bias: Mapping[int, float] | None = None
    allowed_token_ids: Sequence[int] | None = None
    logits_processors: Sequence[Callable[[list[int], Any], Any]] | None = None

    def __post_init__(self) -> None:
        freeze(self)
        check(self)

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is taken and nothing is drawn."""
        return self.temperature < 1e-5

    @property
    def width(self) -> int:
        """How many candidates are made, or how many beams there are."""
        return self.n if self.best_of is None else self.best_of

    def ends(self, eos_token_ids: Iterable[int]) -> dict[int, bool]:
        """The tokens that end a sequence, and whether each is told as its stop token."""
        ends = dict.fromkeys(self.stop_token_ids or (), True)
        if not self.ignore_eos:
            ends |= dict.fromkeys(eos_token_ids, False)
        return ends

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return self.stop  # type: ignore[return-value]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """All that is needed to begin a generation, or to go on with it anywhere.

    `emitted` holds tokens already given to the caller: the engine continues after them exactly as
    if it had made them itself. `params.n` siblings are numbered `sibling` .. `sibling + n - 1`; a
    single sibling that moves is sent again with n = 1, its own `sibling` and its own `emitted`.
    `params.seed` is set at the door, never None here. `cache_salt` and `adapter` part the prefix
    cache. `keys` are those of the prompt's full blocks (`keys.py`), where the door has hashed
    it. Requests of one `session` like to meet at one replica. `epoch` counts the starts of this
    stream.
    """

    id: str
    prompt: tuple[int, ...]
    params: SamplingParams = field(default_factory=SamplingParams)
    emitted: tuple[int, ...] = ()
    sibling: int = 0
    adapter: str | None = None
    cache_salt: str = ""
    priority: int = 0
    tenant: str = ""
    epoch: int = 0
    keys: tuple[bytes, ...] = ()
    session: str = ""


def fold_seed(seed: int) -> int:
    """The key of a seed's draws, 64 bits: any integer's, and a key's is itself.

    0 .. 2**64 - 1 are kept as they are; any other is the BLAKE2b hash of its decimal digits.
    """
    if 0 <= seed < 1 << 64:
        return seed
    return int.from_bytes(blake2b(str(seed).encode(), digest_size=8).digest(), "little")


def with_values(params: SamplingParams, **values: int | tuple[str, ...] | None) -> SamplingParams:
    """`params` with other values, which must be in bounds and frozen; its lists are shared, and not
    walked again.
    """
    changed = copy.copy(params)
    for name, value in values.items():
        object.__setattr__(changed, name, value)
    return changed


def candidates_of(params: SamplingParams) -> SamplingParams:
    """What an engine is asked for where a door chooses among `best_of` candidates: all of them, and
    the log probabilities to choose by. Beams are chosen by the engine.
    """
    if params.best_of == params.n and not params.use_beam_search:
        return replace(params, best_of=None)
    if params.best_of is None and not params.use_beam_search:
        return params
    logprobs = params.logprobs or 0
    if params.use_beam_search:
        return replace(params, logprobs=logprobs)
    return replace(params, n=params.width, best_of=None, logprobs=logprobs)


class TokenLogprobs(NamedTuple):
    """Log probabilities at one position.

    Of the token there, its rank (1 is the most probable), and of the top ones.
    """

    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...] = ()


class Waits(NamedTuple):
    """Seconds of a sequence: from its arrival to its first plan, and from there to its first
    token.
    """

    queued_s: float
    prefill_s: float


class Update(NamedTuple):
    """What one step brought one sequence. `finish` is set once, on its last update.

    `num_cached` (prompt tokens found in the prefix cache), `waits` and `prompt_logprobs` (one entry
    a prompt token, the first None) come with a sequence's first update and are None on the others.
    `stop_reason` is the stop token's id, or None for the end-of-sequence token. `error` says why
    when finish is ERROR.
    """

    id: str
    sibling: int
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] | None = None
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None
    num_cached: int | None = None
    finish: FinishReason | None = None
    stop_reason: int | None = None
    error: str | None = None
    epoch: int = 0
    waits: Waits | None = None


STEP_TOKENS = (1, *(2**power for power in range(3, 15)))
"""Bounds by which an engine counts its steps: `step_tokens_N` of `Load.counters` are those that
computed up to N tokens and more than the bound before, `step_tokens_0` those above the last."""


class RankState(NamedTuple):
    """Who a rank is and what it does. `node` None: that of its engine.

    `ticks` grows with every word of progress, `last_step_s` are the seconds since it finished a
    step, None before its first. `leaving`: it was told to end, and waits for its engine to.
    `expected_s`: for how long at a stretch it should be without a word, as far as was measured.
    """

    rank: int
    node: str | None
    pid: int
    device: str
    step: int
    operation: str
    ticks: int
    last_step_s: float | None
    leaving: bool = False
    expected_s: float = 0.0


class StepCost(NamedTuple):
    """Seconds of a step that decodes and nothing else: fixed ones, and those of each stream."""

    fixed_s: float
    stream_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How busy an engine is: sequences that run and wait (`deferred` of them for a sibling, not for
    room), the tokens yet to be computed until each has its next one, how many sequences more would
    be taken (None: any number), KV blocks held (0 to 1), what has happened since its start, by
    name, and what a step costs, as soon as that is known.

    `ticks` grows as long as an engine that has work gets on.
    """

    running: int = 0
    waiting: int = 0
    deferred: int = 0
    tokens: int = 0
    room: int | None = None
    kv_usage: float = 0.0
    counters: dict[str, float] | None = None
    step_cost: StepCost | None = None
    ticks: int = 0
    ranks: tuple[RankState, ...] = ()
