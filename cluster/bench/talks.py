"""Requests as they are sent: a conversation is a generator of bodies that is told each answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeAlias

from ...engine.errors import ConfigError

ENDPOINTS = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}


class Ask(NamedTuple):
    """One request: its body, how many tokens it asks for, seconds to wait before it is sent.

    `input_len` are the prompt's tokens; 0: only the server knows them.
    """

    body: bytes
    output_len: int
    pause_s: float = 0.0
    input_len: int = 0


Talk: TypeAlias = Generator[Ask, str, None]
"""Yields a request, is sent the text of its answer, and yields the next, until there is none."""


class Turn(NamedTuple):
    """What a user says, as token ids or as text, and how long the answer is to be."""

    output_len: int
    ids: tuple[int, ...] = ()
    text: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """Turns one after the other; before each but the first the user thinks for a while."""

    turns: tuple[Turn, ...]
    think_s: float = 0.0


def once(body: bytes, output_len: int = 0) -> Talk:
    """A conversation of one request."""
    yield Ask(body, output_len)


def route(endpoint: str) -> str:
    """The path of `completions`, `chat`, or of the path itself. Raises ConfigError."""
    path = ENDPOINTS.get(endpoint, endpoint)
    if path.rstrip("/") not in ENDPOINTS.values():
        raise ConfigError(
            f"--endpoint must be completions or chat, got {endpoint!r}; both are measured as "
            "streams of /v1/completions and /v1/chat/completions",
            "endpoint",
        )
    return path.rstrip("/")


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """How requests are written. `ids`: a prompt may be token ids, where the route knows them.

    Every turn sends the whole conversation so far, with the server's own answers.
    """

    model: str
    path: str
    ids: bool = True
    ignore_eos: bool = True
    sampling: Mapping[str, Any] = field(default_factory=lambda: {"temperature": 0.0})
    extra: Mapping[str, Any] = field(default_factory=dict)

    def spelled(
        self, conversation: Conversation, text_of: Callable[[tuple[int, ...]], str]
    ) -> Conversation:
        """The same, with text of the ids where they cannot be sent as they are."""
        if self.as_ids(conversation):
            return conversation
        turns = (
            turn if turn.text is not None else turn._replace(text=text_of(turn.ids))
            for turn in conversation.turns
        )
        return replace(conversation, turns=tuple(turns))

    def talk(self, conversation: Conversation) -> Talk:
        """The conversation as `spelled`, to be sent."""
        messages: list[dict[str, str]] = []
        for number, turn in enumerate(conversation.turns):
            pause_s = conversation.think_s if number else 0.0
            if self.as_ids(conversation):
                ask = self._ask({"prompt": list(turn.ids)}, turn.output_len, pause_s)
                yield ask._replace(input_len=len(turn.ids))
                return
            assert turn.text is not None
            messages.append({"role": "user", "content": turn.text})
            answer = yield self._ask(self._prompt(messages), turn.output_len, pause_s)
            messages.append({"role": "assistant", "content": answer})

    def as_ids(self, conversation: Conversation) -> bool:
        """Whether the prompt can be sent exactly, as token ids."""
        turns = conversation.turns
        told = self.ids and self.path.endswith("/v1/completions")
        return told and len(turns) == 1 and turns[0].text is None

    def _prompt(self, messages: list[dict[str, str]]) -> dict[str, Any]:
        if self.path.endswith("/chat/completions"):
            return {"messages": list(messages)}
        return {"prompt": "\n".join(message["content"] for message in messages)}

    def _ask(self, prompt: dict[str, Any], output_len: int, pause_s: float) -> Ask:
        body = {
            "model": self.model,
            "max_tokens": output_len,
            "ignore_eos": self.ignore_eos,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self.sampling,
            **prompt,
            **self.extra,
        }
        if not self.ignore_eos:
            del body["ignore_eos"]
        return Ask(json.dumps(body).encode(), output_len, pause_s)
