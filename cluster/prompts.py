"""From what a caller wrote to the token ids of each prompt, within the model's context."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from ..engine.admission import room_for_output
from ..engine.errors import InvalidRequest
from ..engine.text import Tokenizer
from .conversation import Message, plain_messages
from .link import ModelCard
from .off_loop import LONG, off_loop
from .prefixes import prompt_keys
from .protocol import ChatTemplateFields, CompletionRequest, Sampling, json_kind

MAX_PROMPTS = 1024

_RESERVED = frozenset(
    {"messages", "tools", "chat_template", "add_generation_prompt", "continue_final_message"}
)


class Prompt(NamedTuple):
    """One prompt; `text` is what `echo` gives back."""

    ids: tuple[int, ...]
    text: str


async def completion_prompts(
    request: CompletionRequest, tokenizer: Tokenizer, card: ModelCard
) -> list[Prompt]:
    """The prompts of a completion, in their order; those that are long together are read beside the
    event loop. Raises InvalidRequest.
    """
    return await off_loop(_size(request.prompt), lambda: _prompts(request, tokenizer, card))


def _prompts(request: CompletionRequest, tokenizer: Tokenizer, card: ModelCard) -> list[Prompt]:
    found = []
    for where, prompt in _split(request.prompt):
        if isinstance(prompt, str):
            ids = _encoded(tokenizer, prompt, request.add_special_tokens)
            text = prompt
        else:
            check_ids(prompt, card, where)
            ids = tuple(prompt)
            text = _decoded(tokenizer, prompt) if request.echo else ""
        if not ids:
            raise InvalidRequest(f"{where} must not be empty: it has no tokens", "prompt")
        kept = truncated(ids, request, card)
        if request.echo and len(kept) < len(ids):
            text = _decoded(tokenizer, kept)
        found.append(Prompt(kept, text))
    return found


async def chat_prompt(
    request: ChatTemplateFields, tokenizer: Tokenizer
) -> tuple[list[Message], tuple[int, ...]]:
    """The messages in plain form and the tokens of the rendered conversation.

    Raises InvalidRequest.
    """
    messages = plain_messages(request.messages)
    opened = request.add_generation_prompt
    if opened is None:
        opened = not request.continue_final_message
    if opened and request.continue_final_message:
        raise InvalidRequest(
            "Cannot set both `continue_final_message` and `add_generation_prompt` to True.",
            "continue_final_message",
        )
    extra = dict(request.chat_template_kwargs)
    if reserved := sorted(_RESERVED & extra.keys()):
        raise InvalidRequest(
            f"chat_template_kwargs cannot hold {reserved[0]}", f"chat_template_kwargs.{reserved[0]}"
        )
    if request.documents is not None:
        extra.setdefault("documents", request.documents)
    if request.reasoning_effort is not None:
        extra.setdefault("reasoning_effort", request.reasoning_effort)

    def render() -> str:
        return tokenizer.render(
            messages,
            add_generation_prompt=opened,
            continue_final_message=request.continue_final_message,
            **extra,
        )

    # One thread renders for all: what can be done elsewhere is not done there.
    text = await asyncio.get_running_loop().run_in_executor(tokenizer.executor, render)
    ids = await encode(tokenizer, text, request.add_special_tokens)
    if not ids:
        raise InvalidRequest("messages render to an empty prompt", "messages")
    return messages, ids


async def encode(
    tokenizer: Tokenizer, text: str, add_special_tokens: bool = True
) -> tuple[int, ...]:
    """Token ids of `text`; a long one is tokenized beside the event loop."""
    return await off_loop(len(text), lambda: _encoded(tokenizer, text, add_special_tokens))


async def keys_of(
    prompts: Sequence[tuple[int, ...]], card: ModelCard, salt: str
) -> list[tuple[bytes, ...]]:
    """The keys of each prompt's full blocks; those of long ones are hashed beside the event
    loop.
    """
    return await off_loop(
        sum(map(len, prompts)),
        lambda: [prompt_keys(ids, card.block_size, salt=salt) for ids in prompts],
    )


async def decode(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The text of `ids`, special tokens included; that of many is made beside the event loop."""
    return await off_loop(len(ids), lambda: _decoded(tokenizer, ids))


def _encoded(tokenizer: Tokenizer, text: str, add_special_tokens: bool) -> tuple[int, ...]:
    return tuple(tokenizer.encode(text, add_special_tokens=add_special_tokens))


def _decoded(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False)


def check_ids(ids: list[int], card: ModelCard, param: str) -> None:
    """Raise InvalidRequest for ids outside the vocabulary."""
    for index in (ids.index(min(ids)), ids.index(max(ids))) if ids else ():
        if not 0 <= ids[index] < card.vocab_size:
            raise InvalidRequest(
                f"{param} holds the token id {ids[index]}; ids of this model are 0 to "
                f"{card.vocab_size - 1}",
                param,
            )


def truncated(ids: tuple[int, ...], request: Sampling, card: ModelCard) -> tuple[int, ...]:
    """`ids`, cut to `truncate_prompt_tokens` where the caller asked for that."""
    keep = request.truncate_prompt_tokens
    if keep is None:
        return ids
    if keep == -1:
        keep = card.max_model_len - 1
    if not 1 <= keep <= card.max_model_len:
        raise InvalidRequest(
            f"truncate_prompt_tokens must be between 1 and {card.max_model_len}, or -1; got {keep}",
            "truncate_prompt_tokens",
        )
    return ids[-keep:] if request.truncation_side == "left" else ids[:keep]


def output_room(
    num_prompt: int, requested: int | None, card: ModelCard, default: int | None
) -> int:
    """How many tokens an answer may have: `requested`, else `default`, else all that fit.

    Raises ContextTooLong where the prompt or `requested` does not fit.
    """
    least = None if requested is None else max(1, requested)
    room = room_for_output(num_prompt, least, card.max_model_len)
    if requested is not None:
        return requested
    return room if default is None else min(default, room)


def _size(prompt: object) -> int:
    """Characters and token ids, of all prompts together."""
    if not isinstance(prompt, str | list):
        return 0
    if isinstance(prompt, str) or len(prompt) >= LONG:
        return len(prompt)
    return sum(len(item) if isinstance(item, str | list) else 1 for item in prompt)


def _split(prompt: object) -> list[tuple[str, str | list[int]]]:
    """Each prompt with its name in error messages."""
    if isinstance(prompt, str):
        return [("prompt", prompt)]
    if not isinstance(prompt, list):
        raise InvalidRequest(
            f"prompt must be a string, a list of strings, a list of token ids or a list of lists "
            f"of token ids; got {json_kind(prompt)}",
            "prompt",
        )
    if not prompt:
        raise InvalidRequest("prompt must not be empty", "prompt")
    if all(type(item) is int for item in prompt):
        return [("prompt", prompt)]
    if len(prompt) > MAX_PROMPTS:
        raise InvalidRequest(
            f"prompt takes at most {MAX_PROMPTS} prompts in one request, got {len(prompt)}",
            "prompt",
        )
    for index, item in enumerate(prompt):
        ids = isinstance(item, list) and all(type(token) is int for token in item)
        if not (ids or isinstance(item, str)):
            raise InvalidRequest(
                f"prompt[{index}] must be a string or a list of token ids, got {json_kind(item)}",
                "prompt",
            )
    return [(f"prompt[{index}]", item) for index, item in enumerate(prompt)]
