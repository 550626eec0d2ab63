"""What `shoal bench` asks: prompts of random tokens, chats, or those of a file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from random import Random
from typing import Any

from ...engine.errors import ConfigError
from .lengths import around, sharegpt
from .talks import Conversation, Turn

LOWEST_ID = 16
"""Below it lie the special tokens of many vocabularies."""

CHARACTERS_A_TOKEN = 4
"""Taken where a file tells an answer's text and no tokenizer its tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """Which prompts, how long, and what they share; everything is drawn from `seed`.

    name: `random`; `sharegpt`, of `path`, or of lengths as ShareGPT has them; `custom`, the lines
    of `path`; `prefix_repetition`, `num_prefixes` prefixes in turn; `multi_turn`, chats of about
    `num_turns` turns, or those of `path`. `prefix_len` tokens stand before what was drawn, the same
    in all prompts. Lengths lie evenly within `range_ratio` of the ones given. Raises ConfigError.
    """

    name: str = "random"
    path: Path | None = None
    input_len: int = 128
    output_len: int = 64
    prefix_len: int = 0
    range_ratio: float = 0.0
    num_prefixes: int = 10
    num_turns: int = 4
    think_s: float = 0.0
    fixed_output_len: int | None = None
    shuffle: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.name not in DATASETS:
            raise ConfigError(
                f"--dataset-name must be one of {', '.join(DATASETS)}; got {self.name!r}",
                "dataset_name",
            )
        if self.name == "custom" and self.path is None:
            raise ConfigError(
                '--dataset-name custom needs --dataset-path, lines of {"prompt": ..}',
                "dataset_path",
            )
        for field, low in (
            *(("input_len", 1), ("output_len", 1), ("num_turns", 1)),
            *(("prefix_len", 0), ("num_prefixes", 1), ("think_s", 0)),
        ):
            if getattr(self, field) < low:
                flag = "--" + field.replace("_", "-")
                raise ConfigError(f"{flag} must be at least {low}", field)
        if not 0 <= self.range_ratio < 1:
            raise ConfigError(
                f"--random-range-ratio must be at least 0 and below 1, got {self.range_ratio}",
                "random_range_ratio",
            )

    def conversations(
        self, num: int, vocab_size: int, stream: str, count: Callable[[str], int] | None = None
    ) -> list[Conversation]:
        """`num` of them; another `stream` draws others, with the same shared prefixes.

        `count` tells the tokens of a text, for the answers' lengths in files.
        """
        drawn = _Drawn(self, vocab_size, stream, count)
        made = list(islice(DATASETS[self.name](drawn), num))
        if len(made) < num:
            raise ConfigError(f"{self.path} holds nothing that can be asked", "dataset_path")
        return made


class _Drawn:
    """A dataset with its source of luck: one for what all share, one for a stream's own."""

    def __init__(
        self, asked: Dataset, vocab_size: int, stream: str, count: Callable[[str], int] | None
    ) -> None:
        self.asked = asked
        self.random = Random(f"{asked.seed} {stream}")
        self.count = count or (lambda text: max(1, len(text) // CHARACTERS_A_TOKEN))
        self._vocab_size = vocab_size
        self._low = min(LOWEST_ID, vocab_size - 1)
        self.prefix = self.ids(Random(f"{asked.seed}"), asked.prefix_len)

    def ids(self, random: Random, num: int) -> tuple[int, ...]:
        """Random tokens."""
        return tuple(random.randrange(self._low, self._vocab_size) for _ in range(num))

    def own(self, num: int) -> tuple[int, ...]:
        """Random tokens that no other prompt has."""
        return self.ids(self.random, num)

    def lengths(self) -> tuple[int, int]:
        """An input's and an output's length round those asked for."""
        asked = self.asked
        ratio = asked.range_ratio
        sizes = around(self.random, asked.input_len, ratio), asked.output_len
        return sizes[0], around(self.random, sizes[1], ratio)


def _random(drawn: _Drawn) -> Iterator[Conversation]:
    while True:
        input_len, output_len = drawn.lengths()
        ids = drawn.prefix + drawn.own(input_len)
        yield Conversation(turns=(Turn(output_len, ids),))


def _prefix_repetition(drawn: _Drawn) -> Iterator[Conversation]:
    asked = drawn.asked
    shared = [
        drawn.ids(Random(f"{asked.seed} prefix {i}"), asked.prefix_len)
        for i in range(asked.num_prefixes)
    ]
    for prefix in cycle(shared):
        input_len, output_len = drawn.lengths()
        yield Conversation(turns=(Turn(output_len, prefix + drawn.own(input_len)),))


def _sharegpt(drawn: _Drawn) -> Iterator[Conversation]:
    if drawn.asked.path is not None:
        for turns in _of_file(drawn):
            yield Conversation(turns=turns[:1])
        return
    while True:
        lengths = sharegpt(drawn.random)
        ids = drawn.prefix + drawn.own(lengths.input)
        yield Conversation(turns=(Turn(drawn.asked.fixed_output_len or lengths.output, ids),))


def _multi_turn(drawn: _Drawn) -> Iterator[Conversation]:
    asked = drawn.asked
    if asked.path is not None:
        for told in _of_file(drawn):
            yield Conversation(turns=told, think_s=asked.think_s)
        return
    while True:
        num = drawn.random.randint(1, 2 * asked.num_turns - 1)
        turns: list[Turn] = []
        for number in range(num):
            input_len, output_len = drawn.lengths()
            before = () if number else drawn.prefix
            turns.append(Turn(output_len, before + drawn.own(input_len)))
        yield Conversation(turns=tuple(turns), think_s=asked.think_s)


def _custom(drawn: _Drawn) -> Iterator[Conversation]:
    asked = drawn.asked
    assert asked.path is not None
    rows = [json.loads(line) for line in _text(asked.path).splitlines() if line.strip()]
    for row in _over_and_over(drawn, [row for row in rows if row.get("prompt")]):
        length = asked.fixed_output_len or row.get("output_tokens") or asked.output_len
        prompt = row["prompt"]
        if isinstance(prompt, list):
            yield Conversation(turns=(Turn(length, tuple(prompt)),))
        else:
            yield Conversation(turns=(Turn(length, text=prompt),))


def _of_file(drawn: _Drawn) -> Iterator[tuple[Turn, ...]]:
    """The turns of each chat of a ShareGPT file, which begin with a person's and are answered."""
    path = drawn.asked.path
    assert path is not None
    chats = []
    for row in json.loads(_text(path)):
        said = row.get("conversations") or row.get("conversation") or row.get("messages") or []
        texts = [str(part.get("value", part.get("content", ""))) for part in said]
        pairs = list(zip(texts[::2], texts[1::2], strict=False))
        if pairs and all(question and answer for question, answer in pairs):
            chats.append(pairs)
    for pairs in _over_and_over(drawn, chats):
        yield tuple(
            Turn(drawn.asked.fixed_output_len or drawn.count(answer), text=question)
            for question, answer in pairs
        )


def _over_and_over(drawn: _Drawn, rows: list[Any]) -> Iterator[Any]:
    """All rows in a drawn order, and again where more are asked for."""
    if drawn.asked.shuffle:
        drawn.random.shuffle(rows)
    return cycle(rows) if rows else iter(())


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--dataset-path {path}: {error.strerror}", "dataset_path") from None


DATASETS: dict[str, Callable[[_Drawn], Iterator[Conversation]]] = {
    "random": _random,
    "sharegpt": _sharegpt,
    "custom": _custom,
    "prefix_repetition": _prefix_repetition,
    "multi_turn": _multi_turn,
}
