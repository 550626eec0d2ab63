"""A request's sampling fields, the model's own defaults behind them, as SamplingParams."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Sized
from typing import Any

from ..engine.errors import InvalidRequest
from ..engine.request import SamplingParams, candidates_of, with_values
from ..engine.text import Tokenizer, with_bad_words
from .link import ModelCard
from .off_loop import off_loop
from .prompts import check_ids
from .protocol import ChatRequest, CompletionRequest, Sampling

MAX_SENT = 2**23
"""Ids and characters of lists that the prompts of one request may take to engines."""

_DRAWING = ("temperature", "top_p", "top_k", "min_p")
_DEFAULTED = (*_DRAWING, "repetition_penalty")
_MOST_DIGITS = 64
"""Of a token id, zeros before it included; Python itself reads no number of 4,301."""
_PLAIN = (
    "n",
    "best_of",
    "use_beam_search",
    "length_penalty",
    "early_stopping",
    "stop",
    "min_tokens",
    "stop_token_ids",
    "bad_words",
    "include_stop_str_in_output",
    "ignore_eos",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "allowed_token_ids",
)


def _params(
    request: CompletionRequest | ChatRequest,
    card: ModelCard,
    tokenizer: Tokenizer,
    *,
    max_tokens: int,
) -> SamplingParams:
    """How to answer `request`, with the seed that the caller gave, if any.

    The engine is never asked for no tokens at all: of 0, one is made and dropped by the caller. Of
    `best_of` candidates all are asked for. Beams draw nothing, so that the model's defaults of
    drawing are left out. Raises InvalidRequest naming the field.
    """
    _check(request, card)
    values: dict[str, Any] = {name: getattr(request, name) for name in _PLAIN}
    defaults = card.sampling_defaults
    if request.use_beam_search:
        defaults = {k: v for k, v in defaults.items() if k not in _DRAWING} | {"temperature": 0}
    for name in (*_DEFAULTED, "presence_penalty", "frequency_penalty"):
        value = getattr(request, name)
        if value is None and name in _DEFAULTED:
            value = defaults.get(name)
        if value is not None:
            values[name] = min(int(value), card.vocab_size) if name == "top_k" else value
    params = SamplingParams(
        **values,
        seed=request.seed,
        max_tokens=max_tokens or 1,
        logprobs=num_logprobs(request),
        prompt_logprobs=num_prompt_logprobs(request),
        logit_bias=_logit_bias(request, card),
    )
    return with_bad_words(tokenizer, candidates_of(params))


async def params_of(
    request: CompletionRequest | ChatRequest,
    card: ModelCard,
    tokenizer: Tokenizer,
    rooms: Sequence[int],
    draw_seed: Callable[[], int],
) -> list[SamplingParams]:
    """How to answer each prompt, of which the answers have `rooms`: alike but for room and seed,
    with lists that are made once, beside the event loop where they are long.

    Raises InvalidRequest.
    """

    def made() -> SamplingParams:
        params = _params(request, card, tokenizer, max_tokens=min(rooms))
        _check_sent(params, len(rooms))
        return params

    params = await off_loop(_size(request), made)
    return [
        with_values(
            params,
            max_tokens=room or 1,
            seed=draw_seed() if request.seed is None else request.seed,
        )
        for room in rooms
    ]


def _size(request: Sampling) -> int:
    """Entries, and characters to be tokenized, of its lists."""
    lists: list[Sized] = [request.stop_token_ids, *request.bad_words]
    lists += [request.allowed_token_ids or (), request.logit_bias or ()]
    return sum(map(len, lists))


def _check_sent(params: SamplingParams, num_prompts: int) -> None:
    """Each prompt goes to an engine with all lists."""
    lists: list[Sized] = [params.allowed_token_ids or (), params.logit_bias or ()]
    lists += [params.stop_token_ids or (), *params.stops]
    lists += [*(params.bad_words or ()), *params.bad_words_ids]
    size = num_prompts * sum(map(len, lists))
    if num_prompts > 1 and size > MAX_SENT:
        raise InvalidRequest(
            f"allowed_token_ids, bad_words, logit_bias, stop and stop_token_ids go to an engine "
            f"with each of {num_prompts} prompts: {size} ids and characters in all, and at most "
            f"{MAX_SENT} are sent for one request; send fewer prompts in one",
            "prompt",
        )


def num_logprobs(request: CompletionRequest | ChatRequest) -> int | None:
    """Alternatives beside each chosen token, None where no log probabilities are wanted."""
    if isinstance(request, ChatRequest):
        return request.top_logprobs if request.logprobs else None
    return request.logprobs


def num_prompt_logprobs(request: CompletionRequest | ChatRequest) -> int | None:
    """Alternatives beside each prompt token: what the caller says, else what `echo` needs."""
    if request.prompt_logprobs is None and isinstance(request, CompletionRequest) and request.echo:
        return request.logprobs
    return request.prompt_logprobs


def _check(request: CompletionRequest | ChatRequest, card: ModelCard) -> None:
    if request.stream and (request.use_beam_search or (request.best_of or 0) > request.n):
        name = "use_beam_search" if request.use_beam_search else "best_of"
        raise InvalidRequest(
            f"stream: true does not go with {name}: which answers are best is known at the end",
            name,
        )
    if request.stream_options is not None and not request.stream:
        raise InvalidRequest(
            "Stream options can only be defined when `stream=True`.", "stream_options"
        )
    if isinstance(request, ChatRequest) and request.top_logprobs and not request.logprobs:
        raise InvalidRequest("top_logprobs needs logprobs: true", "top_logprobs")
    if request.prompt_logprobs is not None and request.stream:
        raise InvalidRequest(
            "`prompt_logprobs` are not available when `stream=True`.", "prompt_logprobs"
        )
    name = "top_logprobs" if isinstance(request, ChatRequest) else "logprobs"
    _check_logprobs(name, num_logprobs(request), card)
    _check_logprobs("prompt_logprobs", request.prompt_logprobs, card)
    check_ids(request.stop_token_ids, card, "stop_token_ids")
    check_ids(request.allowed_token_ids or [], card, "allowed_token_ids")


def _check_logprobs(name: str, value: int | None, card: ModelCard) -> None:
    most = card.vocab_size if card.max_logprobs == -1 else card.max_logprobs
    if value is None or 0 <= value <= most or (value == -1 and card.max_logprobs == -1):
        return
    raise InvalidRequest(
        f"{name} must be between 0 and {most}, got {value}; the server's bound is --max-logprobs",
        name,
    )


def _logit_bias(request: Sampling, card: ModelCard) -> dict[int, float] | None:
    bias = {}
    for key, value in (request.logit_bias or {}).items():
        if not key.isdecimal() or len(key) > _MOST_DIGITS:
            shown = repr(key if len(key) <= _MOST_DIGITS else f"{key[:_MOST_DIGITS]}...")
            raise InvalidRequest(f"logit_bias takes token ids as keys, got {shown}", "logit_bias")
        bias[int(key)] = min(100.0, max(-100.0, value))
    check_ids(list(bias), card, "logit_bias")
    return bias or None
