"""Answers as JSON: whole, and as the chunks of a stream.

Chunks are put together from ready bytes: all of a chunk but its text is known before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from ..engine.request import TokenLogprobs
from .logprobs import LegacyLogprobs, TokenNames, chat_logprobs, prompt_logprobs
from .state import Choice
from .stream import Delta, Generation

DONE = b"data: [DONE]\n\n"

_json = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True, kw_only=True)
class Heading:
    """What every piece of one answer repeats, and which extras the caller asked for."""

    id: str
    created: int
    model: str
    fingerprint: str
    names: TokenNames
    with_logprobs: bool = False
    with_token_ids: bool = False
    with_prompt_logprobs: bool = False
    continuous_usage: bool = False


class Format(Protocol):
    """One route's way to write an answer."""

    heading: Heading

    def opening(self, generations: Sequence[Generation]) -> bytes:
        """The chunks before any token."""
        ...

    def chunk(self, generation: Generation, choice: Choice, delta: Delta, num_tokens: int) -> bytes:
        """One choice's next piece, with which it has `num_tokens`; it may have more by now."""
        ...

    def usage(self, generations: Sequence[Generation]) -> bytes:
        """The chunk that holds the usage."""
        ...

    def whole(self, ends: Sequence[tuple[Generation, Choice, Delta]]) -> bytes:
        """The answer to a request that does not stream; `ends` are in the order of the choices."""
        ...


def usage(generations: Sequence[Generation]) -> dict[str, Any]:
    """OpenAI's usage object: each prompt once, each of its siblings' tokens."""
    prompt = sum(len(generation.request.prompt) for generation in generations)
    completion = sum(c.num_tokens for generation in generations for c in generation.choices)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {
            "cached_tokens": sum(g.state.num_cached or 0 for g in generations)
        },
    }


def merged(deltas: Sequence[Delta]) -> Delta:
    """All of one choice as a single delta."""
    logprobs: tuple[TokenLogprobs, ...] | None = None
    if any(delta.logprobs is not None for delta in deltas):
        logprobs = tuple(entry for delta in deltas for entry in delta.logprobs or ())
    return Delta(
        "".join(delta.text for delta in deltas),
        tuple(token for delta in deltas for token in delta.tokens),
        logprobs,
        deltas[-1].finish,
        deltas[-1].stop_reason,
    )


class _Pieces:
    """The bytes that chunks of one answer share."""

    def __init__(self, heading: Heading, kind: str) -> None:
        self.heading = heading
        fields = {
            "id": heading.id,
            "object": kind,
            "created": heading.created,
            "model": heading.model,
            "system_fingerprint": heading.fingerprint,
        }
        self._head = b"data: " + _json(fields)[:-1]

    def usage(self, generations: Sequence[Generation]) -> bytes:
        """The chunk that holds the usage."""
        return b'%b,"choices":[],"usage":%b}\n\n' % (self._head, _json(usage(generations)))

    def chunk(self, index: int, middle: bytes, after: bytes) -> bytes:
        """A chunk of one choice; `middle` its fields, `after` those behind the choices."""
        return b'%b,"choices":[{"index":%d,%b}]%b}\n\n' % (self._head, index, middle, after)

    def usage_so_far(self, generation: Generation, num_tokens: int) -> bytes:
        """The usage of one choice, where every chunk has to hold it."""
        if not self.heading.continuous_usage:
            return b""
        prompt = len(generation.request.prompt)
        counts = (prompt, num_tokens, prompt + num_tokens)
        return b',"usage":{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d}' % counts

    def whole(self, choices: list[dict[str, Any]], generations: Sequence[Generation]) -> bytes:
        """A whole answer."""
        fields = self._head.removeprefix(b"data: ")
        return b'%b,"choices":%b,"usage":%b}' % (fields, _json(choices), _json(usage(generations)))


def _end(delta: Delta) -> bytes:
    if delta.finish is None:
        return b'"finish_reason":null'
    reason = delta.finish.value.encode()
    return b'"finish_reason":"%b","stop_reason":%b' % (reason, _json(delta.stop_reason))


class CompletionFormat:
    """/v1/completions. `echoes`: for each choice the prompt's text, where it is to be repeated."""

    def __init__(self, heading: Heading, echoes: Sequence[str] = ()) -> None:
        self.heading = heading
        self._pieces = _Pieces(heading, "text_completion")
        self._echoes = dict(enumerate(echoes))
        self._forms: dict[int, LegacyLogprobs] = {}
        self._told: set[int] = set()
        self.usage = self._pieces.usage

    def opening(self, generations: Sequence[Generation]) -> bytes:
        """Nothing: the first chunk is text."""
        return b""

    def chunk(self, generation: Generation, choice: Choice, delta: Delta, num_tokens: int) -> bytes:
        """One choice's next piece."""
        middle = b'"text":%b,"logprobs":%b,%b' % (
            _json(self._text(choice, delta)),
            _json(self._logprobs(generation, choice, delta)),
            _end(delta),
        )
        if self.heading.with_token_ids:
            if choice.index not in self._told:
                middle += b',"prompt_token_ids":%b' % _json(generation.request.prompt)
            middle += b',"token_ids":%b' % _json(delta.tokens)
        self._told.add(choice.index)
        after = self._pieces.usage_so_far(generation, num_tokens)
        return self._pieces.chunk(choice.index, middle, after)

    def whole(self, ends: Sequence[tuple[Generation, Choice, Delta]]) -> bytes:
        """The answer to a request that does not stream."""
        choices = [self._choice(*end) for end in ends]
        generations = list(dict.fromkeys(generation for generation, _, _ in ends))
        return self._pieces.whole(choices, generations)

    def _choice(self, generation: Generation, choice: Choice, delta: Delta) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "index": choice.index,
            "text": self._text(choice, delta),
            "logprobs": self._logprobs(generation, choice, delta),
            "finish_reason": delta.finish,
            "stop_reason": delta.stop_reason,
        }
        if self.heading.with_token_ids:
            fields["prompt_token_ids"] = generation.request.prompt
            fields["token_ids"] = delta.tokens
        if self.heading.with_prompt_logprobs:
            fields["prompt_logprobs"] = prompt_logprobs(
                self.heading.names, generation.request.prompt, _of_prompt(generation)
            )
        return fields

    def _text(self, choice: Choice, delta: Delta) -> str:
        if choice.index in self._told or not self._echoes:
            return delta.text
        return self._echoes[choice.index] + delta.text

    def _logprobs(
        self, generation: Generation, choice: Choice, delta: Delta
    ) -> dict[str, Any] | None:
        if not self.heading.with_logprobs:
            return None
        tokens: tuple[int, ...] = delta.tokens
        logprobs: tuple[TokenLogprobs | None, ...] = delta.logprobs or ()
        if self._echoes and choice.index not in self._told:
            tokens = generation.request.prompt + tokens
            logprobs = _of_prompt(generation) + logprobs
        form = self._forms.setdefault(choice.index, LegacyLogprobs(self.heading.names))
        return form.push(tokens, logprobs)


def _of_prompt(generation: Generation) -> tuple[TokenLogprobs | None, ...]:
    return generation.state.prompt_logprobs or (None,) * len(generation.request.prompt)


class ChatFormat:
    """/v1/chat/completions. `echo`: text that each answer begins with."""

    def __init__(self, heading: Heading, role: str, echo: str = "") -> None:
        self.heading = heading
        self._pieces = _Pieces(heading, "chat.completion.chunk")
        self._plain = _Pieces(heading, "chat.completion")
        self._role = role
        self._echo = echo
        self.usage = self._pieces.usage

    def opening(self, generations: Sequence[Generation]) -> bytes:
        """A chunk a choice that tells the role, and what is echoed."""
        delta = _json({"role": self._role, "content": self._echo})
        chunks = []
        for generation in generations:
            middle = b'"delta":%b,"logprobs":null,"finish_reason":null' % delta
            if self.heading.with_token_ids:
                middle += b',"prompt_token_ids":%b' % _json(generation.request.prompt)
            for choice in generation.choices:
                after = self._pieces.usage_so_far(generation, 0)
                chunks.append(self._pieces.chunk(choice.index, middle, after))
        return b"".join(chunks)

    def chunk(self, generation: Generation, choice: Choice, delta: Delta, num_tokens: int) -> bytes:
        """One choice's next piece."""
        says = b'{"content":%b}' % _json(delta.text) if delta.text else b"{}"
        middle = b'"delta":%b,"logprobs":%b,%b' % (says, _json(self._logprobs(delta)), _end(delta))
        if self.heading.with_token_ids:
            middle += b',"token_ids":%b' % _json(delta.tokens)
        after = self._pieces.usage_so_far(generation, num_tokens)
        return self._pieces.chunk(choice.index, middle, after)

    def whole(self, ends: Sequence[tuple[Generation, Choice, Delta]]) -> bytes:
        """The answer to a request that does not stream."""
        choices = [self._choice(choice, delta) for _, choice, delta in ends]
        generation = ends[0][0]
        answer = self._plain.whole(choices, [generation])
        extras: dict[str, Any] = {}
        if self.heading.with_token_ids:
            extras["prompt_token_ids"] = generation.request.prompt
        if self.heading.with_prompt_logprobs:
            extras["prompt_logprobs"] = prompt_logprobs(
                self.heading.names, generation.request.prompt, _of_prompt(generation)
            )
        return answer[:-1] + b"," + _json(extras)[1:] if extras else answer

    def _choice(self, choice: Choice, delta: Delta) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "index": choice.index,
            "message": {
                "role": self._role,
                "content": self._echo + delta.text,
                "refusal": None,
            },
            "logprobs": self._logprobs(delta),
            "finish_reason": delta.finish,
            "stop_reason": delta.stop_reason,
        }
        if self.heading.with_token_ids:
            fields["token_ids"] = delta.tokens
        return fields

    def _logprobs(self, delta: Delta) -> dict[str, Any] | None:
        if not self.heading.with_logprobs or not delta.tokens:
            return None
        return chat_logprobs(self.heading.names, delta.tokens, delta.logprobs or ())
