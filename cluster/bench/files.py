"""The files that `shoal bench` takes prompts from: lines of prompts, and ShareGPT's chats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from ...engine.errors import ConfigError


class Line(NamedTuple):
    """A prompt as text or as token ids, and the answer's tokens where the file tells them."""

    prompt: str | tuple[int, ...]
    output_tokens: int | None


class Pair(NamedTuple):
    """What a person said, and what was answered."""

    question: str
    answer: str


def lines(path: Path) -> list[Line]:
    """Of each line that has one the `prompt`, with `output_tokens`. Raises ConfigError."""
    found = []
    for number, text in enumerate(_text(path).splitlines(), 1):
        if text.strip():
            where = f"{path}, line {number}"
            row = _object(_json(text, where), where)
            if row.get("prompt"):
                found.append(Line(_prompt(row["prompt"], where), _output_tokens(row, where)))
    return found


def chats(path: Path) -> list[list[Pair]]:
    """The chats that a person begins and that are answered throughout. Raises ConfigError."""
    rows = _json(_text(path), str(path))
    if not isinstance(rows, list):
        raise _refused(str(path), "a list of chats", rows)
    found = []
    for number, given in enumerate(rows, 1):
        where = f"{path}, chat {number}"
        row = _object(given, where)
        said = row.get("conversations") or row.get("conversation") or row.get("messages") or []
        if not isinstance(said, list):
            raise _refused(where, "a list of what was said", said)
        parts = [_object(part, where) for part in said]
        texts = [str(part.get("value", part.get("content", ""))) for part in parts]
        pairs = [Pair(*pair) for pair in zip(texts[::2], texts[1::2], strict=False)]
        if pairs and all(pair.question and pair.answer for pair in pairs):
            found.append(pairs)
    return found


def _prompt(given: Any, where: str) -> str | tuple[int, ...]:
    if isinstance(given, str):
        return given
    ids = given if isinstance(given, list) else [None]
    if any(type(token) is not int or token < 0 for token in ids):
        raise _refused(where, "a prompt of text or of token ids", given)
    return tuple(ids)


def _output_tokens(row: dict[str, Any], where: str) -> int | None:
    given = row.get("output_tokens")
    if given is not None and (type(given) is not int or given < 1):
        raise _refused(where, "output_tokens of at least 1", given)
    return given


def _object(given: Any, where: str) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise _refused(where, "a JSON object", given)
    return given


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ConfigError(f"--dataset-path {where}: no JSON: {error}", "dataset_path") from None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--dataset-path {path}: {error.strerror}", "dataset_path") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"--dataset-path {path}: no UTF-8: {error}", "dataset_path") from None


def _refused(where: str, wanted: str, given: Any) -> ConfigError:
    shown = json.dumps(given)
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    return ConfigError(f"--dataset-path {where}: expected {wanted}, got {shown}", "dataset_path")
