"""What every generator of the corpus makes: one conversation with a known last answer."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

Message: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Exercise:
    """A conversation that ends with the assistant's right answer.

    `keys` name the problems inside; an exercise that shares a key with a held-out one is kept
    out of the training text. Closed sets of questions (greetings, capitals) have no keys: they
    are to be known by heart.
    """

    skill: str
    messages: list[Message]
    keys: tuple[str, ...]
    tools: tuple[dict[str, Any], ...] = ()


Generator: TypeAlias = Callable[[random.Random], Exercise]


def turn(question: str, answer: str) -> list[Message]:
    """One question of the user and its answer."""
    return [user(question), assistant(answer)]


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}


def vary(rng: random.Random, question: str) -> str:
    """The question as different people type it: no capital, no full stop, a courtesy."""
    chance = rng.random()
    if chance < 0.12:
        question = question[0].lower() + question[1:]
    elif chance < 0.2:
        question = question.rstrip(".?")
    elif chance < 0.26:
        question = question.lower().rstrip(".?")
    elif chance < 0.3:
        question = "Please " + question[0].lower() + question[1:]
    return question
