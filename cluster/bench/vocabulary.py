"""What a server's tokens are: how many there are, and their text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...engine.errors import ConfigError
from ..client import Client, ClientError

FEW_TOKENS = 1000
"""Ids below this are taken where nobody tells how large the vocabulary is."""

_WORDS = ("red", "sun", "top", "fog", "ten", "map", "ice", "cat", "oak", "bus", "jam", "pen")


def text_of(
    client: Client, model: str, tell: Callable[[str], None]
) -> Callable[[tuple[int, ...]], str]:
    """Makes text of token ids by the server's /detokenize, with a request for each prompt.

    A server that makes none is asked once and told of; from then on each id is a short word.
    """
    makes_text = True

    def told(ids: tuple[int, ...]) -> str:
        nonlocal makes_text
        if makes_text:
            text = _detokenized(client, model, ids)
            if text is not None:
                return text
            makes_text = False
            tell("the server has no /detokenize: prompts are a short word for each token")
        return " ".join(_WORDS[number % len(_WORDS)] for number in ids)

    return told


def _detokenized(client: Client, model: str, ids: tuple[int, ...]) -> str | None:
    try:
        text = client.call("/detokenize", {"model": model, "tokens": list(ids)}).get("prompt")
    except ClientError:
        return None
    return text if isinstance(text, str) else None


def counter(tokenizer: str | None) -> Callable[[str], int] | None:
    """Counts the tokens of a text, where a tokenizer is named. Raises LoadError."""
    if tokenizer is None:
        return None
    from ...engine.text import Tokenizer

    loaded = Tokenizer.load(tokenizer)
    return lambda text: max(1, len(loaded.encode(text)))


def vocabulary_size(card: dict[str, Any], told: int | str | None) -> int | None:
    """The vocabulary's size as `told`, or else by the server's card.

    `told` may be the folder of a model or tokenizer. None where nobody tells. Raises ConfigError
    where the folder does not.
    """
    if isinstance(told, int):
        return told
    if told is not None:
        size = _size_in(told)
        if size is None:
            raise ConfigError(
                f"--tokenizer {told} is no folder with a config.json that has a vocab_size",
                "tokenizer",
            )
        return size
    stated = card.get("vocab_size")
    return stated if isinstance(stated, int) else _size_in(str(card.get("root") or ""))


def _size_in(folder: str) -> int | None:
    if not folder:  # as a path it would be the working directory
        return None
    try:
        config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        size = config.get("vocab_size") or config.get("text_config", {}).get("vocab_size")
        return int(size) if size else None
    except (OSError, ValueError, AttributeError):
        return None
