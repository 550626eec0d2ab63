"""What a request must satisfy before an engine takes it on."""

from __future__ import annotations

import dataclasses
import itertools
from array import array
from collections.abc import Iterable
from hashlib import blake2b

from .config import EngineConfig
from .errors import ContextTooLong, InvalidRequest
from .executor import Capacity
from .keys import KEY_BYTES
from .request import FinishReason, Request, Update
from .seat import num_ranks


class Seeds:
    """Seeds for requests that bring none: a fixed sequence for each `base` and, where others draw
    from the same one, each `source`. Safe between threads.

    A generation keeps its seed wherever it goes on, so one is given before the first token.
    """

    def __init__(self, base: int, source: str = "") -> None:
        self._base = f"{base}/{source}" if source else f"{base}"
        self._count = itertools.count()

    def draw(self) -> int:
        """The next seed, 63 bits."""
        drawn = blake2b(f"{self._base}/{next(self._count)}".encode(), digest_size=8)
        return int.from_bytes(drawn.digest(), "big") >> 1

    def give(self, request: Request) -> Request:
        """`request` with a seed, its own if it has one."""
        if request.params.seed is not None:
            return request
        params = dataclasses.replace(request.params, seed=self.draw())
        return dataclasses.replace(request, params=params)


def check(request: Request, config: EngineConfig, capacity: Capacity) -> None:
    """Raise InvalidRequest or ContextTooLong for what this engine cannot do.

    More `max_tokens` than fit are no error here: the answer ends where the context does.
    """
    params = request.params
    if not request.prompt:
        raise InvalidRequest("a prompt must hold at least one token", "prompt")
    if request.adapter is not None:
        raise InvalidRequest(f"adapter {request.adapter!r}: LoRA is not built yet", "model")
    if request.emitted and params.n > 1:
        raise InvalidRequest("a generation with emitted tokens is resumed with n=1", "n")
    if params.use_beam_search:
        _check_beams(request, config)
    elif params.best_of is not None:
        raise InvalidRequest(
            "best_of is chosen where the text is: ask for request.candidates_of(params)", "best_of"
        )
    if params.logits_processors and num_ranks(config) > 1:
        raise InvalidRequest(
            f"logits_processors are code of this process, and {num_ranks(config)} ranks compute in "
            f"others; use logit_bias, allowed_token_ids or bad_words, or an engine of one rank",
            "logits_processors",
        )
    if params.bad_words and not params.bad_words_ids:
        raise InvalidRequest(
            "bad_words are enforced as token ids: fill in bad_words_ids with text.with_bad_words",
            "bad_words",
        )
    _check_ids("prompt", request.prompt, capacity.vocab_size)
    _check_ids("prompt", request.emitted, capacity.vocab_size)
    for name in ("logit_bias", "allowed_token_ids", "stop_token_ids"):
        _check_ids(name, getattr(params, name) or (), capacity.vocab_size)
    for ids in params.bad_words_ids:
        _check_ids("bad_words", ids, capacity.vocab_size)
    _check_keys(request, capacity)
    if not isinstance(request.priority, int):
        raise InvalidRequest(f"priority must be an integer, got {request.priority!r}", "priority")
    for name in ("logprobs", "prompt_logprobs"):
        _check_logprobs(name, getattr(params, name), config.max_logprobs)
    room_for_output(len(request.prompt), None, capacity.max_model_len)


def _check_keys(request: Request, capacity: Capacity) -> None:
    """Keys of blocks of another size would stand for other tokens."""
    blocks = len(request.prompt) // capacity.block_size
    if request.keys and (
        len(request.keys) != blocks or any(len(key) != KEY_BYTES for key in request.keys)
    ):
        raise InvalidRequest(
            f"{len(request.keys)} keys were sent for a prompt of {blocks} full blocks of "
            f"{capacity.block_size} tokens; send one of {KEY_BYTES} bytes for each, or none",
            "keys",
        )


def _check_beams(request: Request, config: EngineConfig) -> None:
    width = request.params.width
    if width > config.max_num_seqs:
        raise InvalidRequest(
            f"{width} beams must run together, and at most max_num_seqs={config.max_num_seqs} can; "
            f"ask for fewer, or serve with more",
            "best_of",
        )
    if request.emitted:
        raise InvalidRequest("beams are resumed from their prompt, all together", "emitted")


def room_for_output(num_prompt: int, requested: int | None, max_model_len: int) -> int:
    """How many tokens may follow a prompt: `requested`, or all that fit.

    Raises ContextTooLong. Clients look for these sentences to the letter.
    """
    if num_prompt > max_model_len:
        raise ContextTooLong(
            f"This model's maximum context length is {max_model_len} tokens. However, your prompt "
            f"contains {num_prompt} input tokens, which exceeds this limit even without any "
            f"output tokens. Please reduce the length of the input prompt.",
            "prompt",
        )
    wanted = 1 if requested is None else requested
    if num_prompt == max_model_len or num_prompt + wanted > max_model_len:
        raise ContextTooLong(
            f"This model's maximum context length is {max_model_len} tokens. However, you "
            f"requested {wanted} output tokens and your prompt contains {num_prompt} input "
            f"tokens, for a total of {num_prompt + wanted} tokens. Please reduce the length of "
            f"the input prompt or the number of requested output tokens.",
            "prompt" if requested is None else "max_tokens",
        )
    return max_model_len - num_prompt if requested is None else requested


def ended(request: Request, capacity: Capacity) -> Update | None:
    """The end of a generation whose emitted tokens are already all that it may have.

    Its first life was cut off between its last token and the word of its end.
    """
    if not request.emitted:
        return None
    last, params = request.emitted[-1], request.params
    room = capacity.max_model_len - len(request.prompt)
    if params.max_tokens is not None:
        room = min(room, params.max_tokens)
    finish = FinishReason.LENGTH if len(request.emitted) >= room else None
    stop = None
    if last in capacity.eos_token_ids and not params.ignore_eos:
        finish = FinishReason.STOP
    elif last in (params.stop_token_ids or ()):
        finish, stop = FinishReason.STOP, last
    if finish is None:
        return None
    return Update(
        request.id,
        request.sibling,
        num_cached=0,
        finish=finish,
        stop_reason=stop,
        epoch=request.epoch,
    )


def _check_ids(name: str, ids: Iterable[int], vocab_size: int) -> None:
    try:
        ids = array("q", ids)
    except (TypeError, OverflowError):
        raise InvalidRequest(f"{name} must hold token ids only", name) from None
    for id in (min(ids), max(ids)) if ids else ():
        if not 0 <= id < vocab_size:
            raise InvalidRequest(
                f"{name} holds the token id {id}; ids of this model are 0 to {vocab_size - 1}", name
            )


def _check_logprobs(name: str, value: int | None, most: int) -> None:
    if value is None or most == -1 or 0 <= value <= most:
        return
    raise InvalidRequest(
        f"{name} must be between 0 and {most}, got {value}; max_logprobs sets the bound", name
    )
