"""What the fields of SamplingParams may hold; who asks for more gets the bound and the way out."""

from __future__ import annotations

import math
from collections.abc import Iterable
from operator import index
from typing import Any

from .errors import InvalidRequest

Params = Any
"""A SamplingParams, which asks here while it is made."""

MAX_N = 128
MAX_STOPS = 64
MAX_BEAM_STOPS = 64
"""Of stop_token_ids: each makes every beam tell one candidate more."""
MAX_BAD_WORDS = 1024
MAX_WORD_LENGTH = 4096
"""Characters of one stop string or bad word."""
MAX_PRIORITY = (1 << 63) - 1


def freeze(params: Params) -> None:
    """Turn lists and nulls into tuples, so that a value can be shared and compared."""

    def put(name: str, value: object) -> None:
        object.__setattr__(params, name, value)

    put("stop", _strings([params.stop] if isinstance(params.stop, str) else params.stop, "stop"))
    put("stop_token_ids", _token_ids(params.stop_token_ids, "stop_token_ids"))
    put("bad_words", _strings(params.bad_words, "bad_words"))
    put("bad_words_ids", tuple(tuple(ids) for ids in params.bad_words_ids))
    put("top_k", 0 if params.top_k == -1 else params.top_k)
    if params.logit_bias is not None:
        try:
            put("logit_bias", {int(k): float(v) for k, v in params.logit_bias.items()} or None)
        except (AttributeError, TypeError, ValueError, OverflowError):
            raise InvalidRequest("logit_bias must map token ids to numbers", "logit_bias") from None
    if params.allowed_token_ids is not None:
        put("allowed_token_ids", _token_ids(params.allowed_token_ids, "allowed_token_ids"))
    for name in (*_OPTIONAL, "truncate_prompt_tokens"):
        if (value := getattr(params, name)) is not None:
            put(name, _integer(value, name))
    put("logits_processors", tuple(params.logits_processors or ()) or None)


def _strings(value: Any, name: str) -> tuple[str, ...]:
    listed = value is None or (isinstance(value, Iterable) and not isinstance(value, str))
    entries = tuple(value or ()) if listed else ()
    if not listed or not all(isinstance(entry, str) for entry in entries):
        raise InvalidRequest(f"{name} must be a list of strings, got {value!r}", name)
    return entries


def _token_ids(value: Any, name: str) -> tuple[int, ...]:
    """Each id once: what a list of ids means does not hang on how often it names one."""
    try:
        return tuple(dict.fromkeys(map(index, () if value is None else value)))
    except TypeError:
        raise InvalidRequest(f"{name} must be a list of token ids, got {value!r}", name) from None


def _integer(value: Any, name: str) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise InvalidRequest(f"{name} must be an integer, got {value!r}", name)
    return index(value)


_LARGEST = 3.4e38
"""About the greatest number of float32, in which the device computes."""

_BOUNDS: dict[str, tuple[float, float]] = {
    "n": (1, MAX_N),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
    "repetition_penalty": (1e-6, 1e6),  # logits that are divided by less leave float32
    "temperature": (0.0, _LARGEST),
    "top_p": (0.0, 1.0),
    "top_k": (0, math.inf),
    "min_p": (0.0, 1.0),
    "min_tokens": (0, math.inf),
    "length_penalty": (-40.0, 40.0),  # of more, a long answer's length ** penalty leaves a float
}


_OPTIONAL: dict[str, float] = {
    "best_of": 1,
    "seed": -math.inf,
    "max_tokens": 0,
    "logprobs": -1,
    "prompt_logprobs": -1,
}


def check(params: Params) -> None:
    """Raise InvalidRequest for the first value that is out of its bounds."""
    for name, (low, high) in _BOUNDS.items():
        value = getattr(params, name)
        whole = isinstance(low, int)
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
            kind = "an integer" if whole else "a number"
            raise InvalidRequest(f"{name} must be {kind}, got {value!r}", name)
        if not low <= value <= high:
            bound = f"at least {low}" if high == math.inf else f"between {low} and {high}"
            raise InvalidRequest(f"{name} must be {bound}, got {value}", name)
    _refuse(params.top_p == 0, "top_p must be above 0, got 0", "top_p")
    for name, low in _OPTIONAL.items():
        value = getattr(params, name)
        more = ", or -1 for the whole vocabulary" if low == -1 else ""
        _refuse(
            value is not None and value < low,
            f"{name} must be at least 0{more}, got {value}",
            name,
        )
    _refuse(
        params.max_tokens is not None and params.min_tokens > params.max_tokens,
        f"min_tokens ({params.min_tokens}) must not exceed max_tokens ({params.max_tokens})",
        "min_tokens",
    )
    keep = params.truncate_prompt_tokens
    _refuse(
        keep is not None and keep != -1 and keep < 1,
        f"truncate_prompt_tokens must be at least 1, or -1 for as many as fit, got {keep}",
        "truncate_prompt_tokens",
    )
    _check_lists(params)
    _check_width(params)
    if params.use_beam_search:
        _check_beams(params)


def _check_width(params: Params) -> None:
    best_of = params.best_of
    _refuse(
        best_of is not None and not params.n <= best_of <= MAX_N,
        f"best_of must be between n ({params.n}) and {MAX_N}, got {best_of}",
        "best_of",
    )
    _refuse(
        type(params.use_beam_search) is not bool,
        f"use_beam_search must be true or false, got {params.use_beam_search!r}",
        "use_beam_search",
    )
    stopping = params.early_stopping
    _refuse(
        type(stopping) is not bool and stopping != "never",
        f"early_stopping must be true, false or 'never', got {stopping!r}",
        "early_stopping",
    )
    if params.use_beam_search:
        return
    for name, value, default in (
        ("length_penalty", params.length_penalty, 1.0),
        ("early_stopping", stopping, False),
    ):
        _refuse(
            value != default,
            f"{name}={value!r} needs use_beam_search: without beams it would change nothing",
            name,
        )


def _check_beams(params: Params) -> None:
    """Refuse what a search that draws nothing, and shows nothing before its end, would ignore."""
    _refuse(
        params.width < 2,
        "use_beam_search needs at least 2 beams: set best_of, or n, to their number",
        "best_of",
    )
    for name, value, neutral in (
        ("temperature", 0 if params.greedy else params.temperature, 0),
        ("top_p", params.top_p, 1),
        ("top_k", params.top_k, 0),
        ("min_p", params.min_p, 0),
    ):
        _refuse(
            value != neutral,
            f"{name} must be {neutral} with use_beam_search, which draws nothing; got {value}",
            name,
        )
    _refuse(
        bool(params.stops),
        "stop strings cannot end a beam; use stop_token_ids with use_beam_search",
        "stop",
    )
    num_stops = len(params.stop_token_ids or ())
    _refuse(
        num_stops > MAX_BEAM_STOPS,
        f"stop_token_ids takes at most {MAX_BEAM_STOPS} ids with use_beam_search, got {num_stops}: "
        "name fewer, or ask without beams",
        "stop_token_ids",
    )
    _refuse(params.max_tokens == 0, "use_beam_search needs max_tokens of at least 1", "max_tokens")


def _check_lists(params: Params) -> None:
    _refuse("" in params.stops, "stop must not contain an empty string", "stop")
    _refuse(
        len(params.stops) > MAX_STOPS,
        f"stop takes at most {MAX_STOPS} strings, got {len(params.stops)}",
        "stop",
    )
    _refuse(
        len(params.bad_words or ()) > MAX_BAD_WORDS,
        f"bad_words takes at most {MAX_BAD_WORDS} strings, got {len(params.bad_words or ())}",
        "bad_words",
    )
    for name, words in (("stop", params.stops), ("bad_words", params.bad_words or ())):
        longest = max(map(len, words), default=0)
        _refuse(
            longest > MAX_WORD_LENGTH,
            f"a string of {name} may have {MAX_WORD_LENGTH} characters, got {longest}",
            name,
        )
    _refuse(
        bool(params.stops) and not params.detokenize,
        "stop strings need detokenize=True; use stop_token_ids instead",
        "stop",
    )
    _refuse(
        "" in (params.bad_words or ()), "bad_words must not contain an empty string", "bad_words"
    )
    _refuse(
        params.allowed_token_ids is not None and not params.allowed_token_ids,
        "allowed_token_ids must not be empty: no token could be chosen",
        "allowed_token_ids",
    )


def _refuse(wrong: bool, message: str, param: str) -> None:
    if wrong:
        raise InvalidRequest(message, param)
