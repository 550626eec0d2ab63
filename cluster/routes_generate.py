"""POST /v1/completions and /v1/chat/completions."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Sequence
from typing import NamedTuple

from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from ..engine.bounds import MAX_PRIORITY
from ..engine.errors import InvalidRequest
from ..engine.request import Request, SamplingParams
from ..engine.text import Tokenizer
from .answer import Answer
from .conversation import content_text
from .formats import ChatFormat, CompletionFormat, Format, Heading
from .link import ModelCard
from .logprobs import TokenNames
from .off_loop import off_loop
from .prompts import chat_prompt, completion_prompts, keys_of, output_room, truncated
from .protocol import MAX_SESSION, ChatRequest, CompletionRequest
from .sampling import num_logprobs, params_of
from .serving import Serving
from .state import new_state
from .stream import Generation

log = logging.getLogger(__name__)

_COMPLETION_TOKENS = 16


class _Asked(NamedTuple):
    """One prompt, the keys of its blocks, and how to go on from it."""

    ids: tuple[int, ...]
    keys: tuple[bytes, ...]
    params: SamplingParams


async def create_completion(serving: Serving, http: HTTPRequest) -> Response:
    """Continue each prompt."""
    request = await serving.read(http, CompletionRequest)
    card = serving.card(request.model)
    serving.router.check_room(card.names[0])
    tokenizer = await serving.tokenizer(card)
    prompts = await completion_prompts(request, tokenizer, card)
    if request.max_tokens_given:
        rooms = [output_room(len(p.ids), request.max_tokens, card, None) for p in prompts]
    else:
        rooms = [output_room(len(p.ids), None, card, _COMPLETION_TOKENS) for p in prompts]
    heading = _heading(http, request, card, tokenizer, "cmpl")
    echoes = [p.text for p in prompts for _ in range(request.n)] if request.echo else []
    params = await params_of(request, card, tokenizer, rooms, lambda: serving.draw_seed(card))
    keys = await keys_of([p.ids for p in prompts], card, request.cache_salt)
    asked = [
        _Asked(prompt.ids, held, how)
        for prompt, held, how in zip(prompts, keys, params, strict=True)
    ]
    silent = request.max_tokens == 0
    await serving.router.awake(card.names[0])
    return await _answer(
        serving, http, request, card, tokenizer, CompletionFormat(heading, echoes), asked, silent
    )


async def create_chat_completion(serving: Serving, http: HTTPRequest) -> Response:
    """Answer a conversation."""
    request = await serving.read(http, ChatRequest)
    card = serving.card(request.model)
    serving.router.check_room(card.names[0])
    tokenizer = await serving.tokenizer(card)
    messages, ids = await chat_prompt(request, tokenizer)
    ids = truncated(ids, request, card)
    wanted = request.max_completion_tokens
    if wanted is None:
        wanted = request.max_tokens
    default = card.sampling_defaults.get("max_tokens")
    room = output_room(len(ids), wanted, card, None if default is None else int(default))
    (params,) = await params_of(request, card, tokenizer, [room], lambda: serving.draw_seed(card))
    (keys,) = await keys_of([ids], card, request.cache_salt)
    heading = _heading(http, request, card, tokenizer, "chatcmpl")
    role = (
        messages[-1]["role"]
        if request.continue_final_message
        else serving.model(card).response_role
    )
    await serving.router.awake(card.names[0])
    echo = content_text(messages[-1]) if request.echo and messages[-1]["role"] == role else ""
    return await _answer(
        serving,
        http,
        request,
        card,
        tokenizer,
        ChatFormat(heading, role, echo),
        [_Asked(ids, keys, params)],
        wanted == 0,
    )


def _heading(
    http: HTTPRequest,
    request: CompletionRequest | ChatRequest,
    card: ModelCard,
    tokenizer: Tokenizer,
    prefix: str,
) -> Heading:
    options = request.stream_options
    usage = bool(options and options.include_usage)
    name = http.state.request_id
    if request.request_id and "x-request-id" not in http.headers:
        name = request.request_id
    return Heading(
        id=f"{prefix}-{name}",
        created=int(time.time()),
        model=card.names[0],
        fingerprint=f"shoal-{card.digest[:16]}",
        names=TokenNames(tokenizer, request.return_tokens_as_token_ids),
        with_logprobs=num_logprobs(request) is not None,
        with_token_ids=request.return_token_ids,
        with_prompt_logprobs=request.prompt_logprobs is not None,
        continuous_usage=usage and bool(options and options.continuous_usage_stats),
    )


async def _answer(
    serving: Serving,
    http: HTTPRequest,
    request: CompletionRequest | ChatRequest,
    card: ModelCard,
    tokenizer: Tokenizer,
    format: Format,
    asked: Sequence[_Asked],
    silent: bool,
) -> Answer:
    """An answer of one generation a prompt; the choices are numbered through."""
    if request.priority and serving.model(card).engine.scheduling_policy != "priority":
        raise InvalidRequest(
            f"priority={request.priority} needs a server with --scheduling-policy priority",
            "priority",
        )
    if abs(request.priority) > MAX_PRIORITY:
        raise InvalidRequest(
            f"priority must be between {-MAX_PRIORITY} and {MAX_PRIORITY}, got {request.priority}",
            "priority",
        )
    answer = Answer(
        format,
        failover=serving.failover,
        stream=request.stream,
        include_usage=bool(request.stream_options and request.stream_options.include_usage),
    )
    unique = uuid.uuid4().hex[:8]
    session = request.session_id or http.headers.get("x-session-id", "")[:MAX_SESSION]
    answer.generations = [
        Generation(
            new_state(
                Request(
                    id=f"{format.heading.id}-{unique}-{i}",
                    prompt=one.ids,
                    params=one.params,
                    keys=one.keys,
                    session=session,
                    cache_salt=request.cache_salt,
                    priority=request.priority,
                ),
                card.names[0],
                first_index=i * request.n,
                num_answers=request.n,
                silent=silent,
                vocabulary=card.vocabulary,
            ),
            tokenizer,
            on_delta=answer.on_delta,
            on_error=answer.on_error,
        )
        for i, one in enumerate(asked)
    ]
    if serving.config.log_requests:
        sent = [generation.request for generation in answer.generations]
        size = sum(len(request.prompt) for request in sent)
        await off_loop(size, lambda: _log(sent, tokenizer, serving.config.max_log_len))
    return answer


def _log(requests: Sequence[Request], tokenizer: Tokenizer, max_length: int | None) -> None:
    for sent in requests:
        text = tokenizer.decode(sent.prompt, skip_special_tokens=False)
        log.info("%s asks %r with %s", sent.id, text[:max_length], sent.params)
