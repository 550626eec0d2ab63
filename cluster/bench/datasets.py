"""What `shoal bench` asks: prompts of random tokens, chats, or those of a file."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from random import Random
from typing import Any

from ...engine.errors import ConfigError
from .files import chats, lines
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
        for name, (flag, low) in _LEAST.items():
            value = getattr(self, name)
            if value is not None and not low <= value < math.inf:
                raise ConfigError(f"{flag} must be at least {low}, got {value}", name)
        if not 0 <= self.range_ratio < 1:
            raise ConfigError(
                f"--random-range-ratio must be at least 0 and below 1, got {self.range_ratio}",
                "random_range_ratio",
            )

    def told(self) -> dict[str, Any]:
        """The fields that shape what is asked, by name."""
        if self.path is not None:
            names = ["path", "fixed_output_len", "shuffle"]
            names += {"custom": ["output_len"], "multi_turn": ["think_s"]}.get(self.name, [])
        elif self.name == "sharegpt":
            names = ["prefix_len", "fixed_output_len"]
        else:
            names = ["input_len", "output_len", "prefix_len", "range_ratio"]
            own = {"prefix_repetition": ["num_prefixes"], "multi_turn": ["num_turns", "think_s"]}
            names += own.get(self.name, [])
        values = {name: getattr(self, name) for name in (*names, "seed")}
        return {n: str(v) if isinstance(v, Path) else v for n, v in values.items()}

    def conversations(
        self,
        num: int,
        vocab_size: int,
        stream: str,
        count: Callable[[str], int] | None = None,
        *,
        taken: int = 0,
    ) -> list[Conversation]:
        """`num` of them; another `stream` draws others, with the same shared prefixes.

        Of a file they are those after the `taken` first, and from its beginning again where it has
        no more. `count` tells the tokens of a text, for the answers' lengths in files.
        """
        drawn = _Drawn(self, vocab_size, stream, count)
        first = taken if self.path is not None else 0
        made = list(islice(DATASETS[self.name](drawn), first, first + num))
        if len(made) < num:
            raise ConfigError(f"{self.path} holds nothing that can be asked", "dataset_path")
        return made


_LEAST = {
    "input_len": ("--input-len", 1),
    "output_len": ("--output-len", 1),
    "fixed_output_len": ("--output-len", 1),
    "num_turns": ("--num-turns", 1),
    "prefix_len": ("--random-prefix-len", 0),
    "num_prefixes": ("--prefix-repetition-num-prefixes", 1),
    "think_s": ("--think-time", 0),
}
"""The least that each field may be, with its flag."""


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
    for line in _over_and_over(drawn, lines(asked.path)):
        length = asked.fixed_output_len or line.output_tokens or asked.output_len
        if isinstance(line.prompt, str):
            yield Conversation(turns=(Turn(length, text=line.prompt),))
        else:
            yield Conversation(turns=(Turn(length, line.prompt),))


def _of_file(drawn: _Drawn) -> Iterator[tuple[Turn, ...]]:
    """The turns of each chat of a ShareGPT file."""
    path = drawn.asked.path
    assert path is not None
    for chat in _over_and_over(drawn, chats(path)):
        yield tuple(
            Turn(drawn.asked.fixed_output_len or drawn.count(pair.answer), text=pair.question)
            for pair in chat
        )


def _over_and_over(drawn: _Drawn, rows: list[Any]) -> Iterator[Any]:
    """All rows, in an order that the seed alone draws, and again where more are asked for."""
    if drawn.asked.shuffle:
        Random(f"{drawn.asked.seed} rows").shuffle(rows)
    return cycle(rows) if rows else iter(())


DATASETS: dict[str, Callable[[_Drawn], Iterator[Conversation]]] = {
    "random": _random,
    "sharegpt": _sharegpt,
    "custom": _custom,
    "prefix_repetition": _prefix_repetition,
    "multi_turn": _multi_turn,
}
