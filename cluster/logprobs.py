"""Log probabilities in the three forms that callers know."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any

from ..engine.request import TokenLogprobs
from ..engine.text import Tokenizer

FLOOR = -9999.0
"""Stands for minus infinity, which JSON cannot hold."""


class TokenNames:
    """What tokens are called in answers; `as_ids` calls them `token_id:5`."""

    __slots__ = ("_as_ids", "_tokenizer")

    def __init__(self, tokenizer: Tokenizer, as_ids: bool = False) -> None:
        self._tokenizer = tokenizer
        self._as_ids = as_ids

    def spelt(self, token: int) -> bytes:
        """The bytes that it adds to a text."""
        return self._tokenizer.token_bytes(token)

    def legacy(self, token: int) -> str:
        """Its text; a part of a character as `bytes:\\xe2\\x80`, so that no two share a name."""
        if self._as_ids:
            return f"token_id:{token}"
        spelt = self.spelt(token)
        try:
            return spelt.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelt)

    def chat(self, token: int) -> tuple[str, list[int]]:
        """Its text and its bytes."""
        spelt = self.spelt(token)
        text = f"token_id:{token}" if self._as_ids else spelt.decode(errors="replace")
        return text, list(spelt)


class LegacyLogprobs:
    """The form of /v1/completions, for the tokens of one choice as they come.

    The first token of a prompt has no log probability: null. The chosen token is always among the
    top ones, with the same value. `text_offset` counts characters from the beginning of the text; a
    character counts with the token that completes it.
    """

    __slots__ = ("_names", "_offset", "_utf8")

    def __init__(self, names: TokenNames) -> None:
        self._names = names
        self._offset = 0
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(
        self, tokens: Sequence[int], logprobs: Sequence[TokenLogprobs | None]
    ) -> dict[str, list[Any]]:
        """The next tokens."""
        form: dict[str, list[Any]] = {
            "tokens": [self._names.legacy(token) for token in tokens],
            "token_logprobs": [entry and max(entry.logprob, FLOOR) for entry in logprobs],
            "top_logprobs": [],
            "text_offset": [],
        }
        for token, text, entry in zip(tokens, form["tokens"], logprobs, strict=True):
            form["top_logprobs"].append(entry and _top(self._names, text, entry))
            form["text_offset"].append(self._offset)
            self._offset += len(self._utf8.decode(self._names.spelt(token)))
        return form


def _top(names: TokenNames, text: str, entry: TokenLogprobs) -> dict[str, float]:
    top = {text: max(entry.logprob, FLOOR)}
    for token, logprob in entry.top:
        top.setdefault(names.legacy(token), max(logprob, FLOOR))
    return top


def chat_logprobs(
    names: TokenNames, tokens: Sequence[int], logprobs: Sequence[TokenLogprobs]
) -> dict[str, Any]:
    """The form of /v1/chat/completions."""
    return {
        "content": [
            {
                **_named(names, token, entry.logprob),
                "top_logprobs": [_named(names, other, value) for other, value in entry.top],
            }
            for token, entry in zip(tokens, logprobs, strict=True)
        ]
    }


def _named(names: TokenNames, token: int, logprob: float) -> dict[str, Any]:
    text, spelt = names.chat(token)
    return {"token": text, "logprob": max(logprob, FLOOR), "bytes": spelt}


def prompt_logprobs(
    names: TokenNames, tokens: Sequence[int], logprobs: Sequence[TokenLogprobs | None]
) -> list[dict[str, Any] | None]:
    """The form of vLLM's `prompt_logprobs`: for each prompt token, token id to its value."""
    return [
        entry and _ranked(names, token, entry)
        for token, entry in zip(tokens, logprobs, strict=True)
    ]


def _ranked(names: TokenNames, token: int, entry: TokenLogprobs) -> dict[str, Any]:
    found = {token: (entry.logprob, entry.rank)}
    for rank, (other, logprob) in enumerate(entry.top, 1):
        found.setdefault(other, (logprob, rank))
    return {
        str(id_): {
            "logprob": max(logprob, FLOOR),
            "rank": rank,
            "decoded_token": names.chat(id_)[0],
        }
        for id_, (logprob, rank) in found.items()
    }
