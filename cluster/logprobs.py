"""Log probabilities in the three forms that callers know."""

from __future__ import annotations

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

    def legacy(self, token: int) -> str:
        """Its text; a part of a character as `bytes:\\xe2\\x80`, so that no two share a name."""
        if self._as_ids:
            return f"token_id:{token}"
        spelt = self._tokenizer.token_bytes(token)
        try:
            return spelt.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelt)

    def chat(self, token: int) -> tuple[str, list[int]]:
        """Its text and its bytes."""
        spelt = self._tokenizer.token_bytes(token)
        text = f"token_id:{token}" if self._as_ids else spelt.decode(errors="replace")
        return text, list(spelt)


def legacy_logprobs(
    names: TokenNames,
    tokens: Sequence[int],
    logprobs: Sequence[TokenLogprobs | None],
    offset: int,
) -> tuple[dict[str, Any], int]:
    """The form of /v1/completions, and the text offset after the last token.

    The first token of a prompt has no log probability: null. The chosen token is always among the
    top ones, with the same value.
    """
    spelt = [names.legacy(token) for token in tokens]
    offsets = []
    for text in spelt:
        offsets.append(offset)
        offset += len(text)
    form = {
        "tokens": spelt,
        "token_logprobs": [entry and max(entry.logprob, FLOOR) for entry in logprobs],
        "top_logprobs": [
            entry and _top(names, text, entry) for text, entry in zip(spelt, logprobs, strict=True)
        ],
        "text_offset": offsets,
    }
    return form, offset


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
