"""Sorting numbers and words, and the small questions around lists."""

from __future__ import annotations

import random

from .exercise import Exercise, turn, vary
from .words import NOUNS

_UP = (
    "Sort these numbers: {x}",
    "Sort {x}",
    "Sort the numbers {x}.",
    "Put these numbers in order: {x}",
    "Sort {x} in ascending order.",
    "Sort from smallest to largest: {x}",
    "Order these numbers from smallest to largest: {x}",
)
_DOWN = (
    "Sort {x} in descending order.",
    "Sort from largest to smallest: {x}",
    "Order these numbers from largest to smallest: {x}",
    "Sort these numbers in descending order: {x}",
)
_WORDS = (
    "Sort these words: {x}",
    "Sort these words alphabetically: {x}",
    "Put these words in alphabetical order: {x}",
    "Sort alphabetically: {x}",
    "Order these words from A to Z: {x}",
)


def _join(items: list[str], rng: random.Random) -> str:
    return rng.choice((", ", ", ", ", ", " ")).join(items)


def numbers(rng: random.Random) -> Exercise:
    """Three to six different numbers below 100, up or down."""
    values = rng.sample(range(rng.choice((20, 100, 100))), rng.randint(3, 6))
    down = rng.random() < 0.3
    ask = rng.choice(_DOWN if down else _UP).format(x=_join([str(v) for v in values], rng))
    answer = ", ".join(str(v) for v in sorted(values, reverse=down))
    key = f"sort {down} {values}"
    return Exercise(skill="sort numbers", messages=turn(vary(rng, ask), answer), keys=(key,))


def words(rng: random.Random) -> Exercise:
    """Three to five common words in alphabetical order."""
    values = rng.sample(NOUNS, rng.randint(3, 5))
    ask = rng.choice(_WORDS).format(x=_join(values, rng))
    answer = ", ".join(sorted(values))
    return Exercise(
        skill="sort words", messages=turn(vary(rng, ask), answer), keys=(f"sort {values}",)
    )


def extremes(rng: random.Random) -> Exercise:
    """The largest or smallest of a list, or whether a number is even."""
    values = rng.sample(range(rng.choice((20, 100, 1000))), rng.randint(2, 5))
    listed = ", ".join(str(v) for v in values)
    kind = rng.choice(("largest", "smallest", "even", "after", "before"))
    if kind == "largest":
        ask = rng.choice(
            ("Which is the largest: {x}?", "What is the largest of {x}?", "Max of {x}")
        )
        answer = str(max(values))
    elif kind == "smallest":
        ask = rng.choice(("Which is the smallest: {x}?", "What is the smallest of {x}?"))
        answer = str(min(values))
    elif kind == "even":
        listed = str(values[0])
        ask = rng.choice(("Is {x} even or odd?", "Is {x} odd or even?"))
        answer = f"{listed} is {'odd' if values[0] % 2 else 'even'}."
    else:
        step = 1 if kind == "after" else -1
        listed = str(values[0] + 1)
        ask = f"Which number comes {kind} {{x}}?"
        answer = str(values[0] + 1 + step)
    question = vary(rng, ask.format(x=listed))
    return Exercise(skill="compare", messages=turn(question, answer), keys=(f"{kind} {listed}",))
