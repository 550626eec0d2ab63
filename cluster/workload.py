"""What `shoal bench serve` sends: prompts of random tokens, no two alike beyond a shared prefix."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from ..engine.errors import ConfigError
from .client import Client, ClientError

FEW_TOKENS = 1000
"""Ids below this are taken where nobody tells how large the vocabulary is."""

LOWEST_ID = 16
"""Below it lie the special tokens of many vocabularies."""

ENDPOINTS = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The shape of every request.

    `shared_prefix_len` of the `input_len` prompt tokens are the same in all prompts; the others are
    drawn from `seed`. Raises ConfigError for a shape that cannot be.
    """

    model: str
    endpoint: str = "completions"
    input_len: int = 128
    output_len: int = 64
    shared_prefix_len: int = 0
    ignore_eos: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.endpoint not in ENDPOINTS:
            known = " or ".join(ENDPOINTS)
            raise ConfigError(f"--endpoint must be {known}, got {self.endpoint!r}", "endpoint")
        for name, low in (("input_len", 1), ("output_len", 1), ("shared_prefix_len", 0)):
            if getattr(self, name) < low:
                flag = "--" + name.replace("_", "-")
                raise ConfigError(f"{flag} must be at least {low}", name)
        if self.shared_prefix_len > self.input_len:
            raise ConfigError(
                f"--shared-prefix-len ({self.shared_prefix_len}) is part of --input-len "
                f"({self.input_len}) and cannot exceed it",
                "shared_prefix_len",
            )

    @property
    def path(self) -> str:
        """The route that requests go to."""
        return ENDPOINTS[self.endpoint]


def token_ids(workload: Workload, vocab_size: int, count: int, stream: str) -> list[list[int]]:
    """`count` prompts as token ids; another `stream` draws others."""
    low = min(LOWEST_ID, vocab_size - 1)

    def draw(random: Random, num: int) -> list[int]:
        return [random.randrange(low, vocab_size) for _ in range(num)]

    shared = draw(Random(f"{workload.seed}"), workload.shared_prefix_len)
    random = Random(f"{workload.seed} {stream}")
    return [
        shared + draw(random, workload.input_len - workload.shared_prefix_len) for _ in range(count)
    ]


def bodies(workload: Workload, client: Client, ids: list[list[int]]) -> list[bytes]:
    """The requests, encoded; for chat the ids become text, by the server's own tokenizer."""
    common: dict[str, Any] = {
        "model": workload.model,
        "max_tokens": workload.output_len,
        "ignore_eos": workload.ignore_eos,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if workload.endpoint == "completions":
        return [json.dumps({**common, "prompt": prompt}).encode() for prompt in ids]
    texts = [_text(client, workload.model, prompt) for prompt in ids]
    turns = [[{"role": "user", "content": text}] for text in texts]
    return [json.dumps({**common, "messages": messages}).encode() for messages in turns]


def _text(client: Client, model: str, ids: list[int]) -> str:
    """The ids as text; where the server has no /detokenize, a short word for each."""
    try:
        return str(client.call("/detokenize", {"model": model, "tokens": ids})["prompt"])
    except (ClientError, KeyError):
        return " ".join(_WORDS[number % len(_WORDS)] for number in ids)


_WORDS = ("red", "sun", "top", "fog", "ten", "map", "ice", "cat", "oak", "bus", "jam", "pen")


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
    try:
        config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        size = config.get("vocab_size") or config.get("text_config", {}).get("vocab_size")
        return int(size) if size else None
    except (OSError, ValueError, AttributeError):
        return None
