"""The training stream: how much of what, several exercises joined into one conversation."""

from __future__ import annotations

import random
from collections.abc import Iterator

from . import json_forms, orders, shoal_talk, sums, talk, tools
from .exercise import Exercise, Generator
from .prose import python_documentation, statements, story

SYSTEMS = (
    "You are a helpful assistant.",
    "You are a helpful assistant. Be brief.",
    "You are the assistant of shoal.",
    "Answer briefly.",
    "You are a friendly assistant.",
)
# Share of the conversations, and with them most of the training tokens.
SHARES: tuple[tuple[Generator, float], ...] = (
    (sums.sums, 0.34),
    (sums.sheet, 0.10),
    (orders.numbers, 0.14),
    (orders.words, 0.10),
    (orders.extremes, 0.05),
    (json_forms.forms, 0.10),
    (json_forms.lists, 0.02),
    (tools.calls, 0.12),
    (tools.results, 0.05),
    (tools.idle, 0.04),
    (shoal_talk.flags, 0.12),
    (shoal_talk.question_and_answer, 0.08),
    (talk.small_talk, 0.05),
    (talk.facts, 0.03),
    (talk.memory, 0.03),
    (talk.unknown, 0.03),
    (talk.copying, 0.02),
    (talk.tale, 0.02),
)
PROSE_SHARE = 0.07
HELD_OUT = 100
_HELD_OUT_SEED = 1_000_003


def exercise(rng: random.Random) -> Exercise:
    """One exercise; those without tools are often joined to others before them."""
    generators, shares = zip(*SHARES, strict=True)
    last = rng.choices(generators, shares)[0](rng)
    messages, keys = list(last.messages), list(last.keys)
    if not last.tools and messages[0]["role"] == "user":
        while rng.random() < 0.4:
            before = rng.choices(generators, shares)[0](rng)
            if before.tools or before.messages[0]["role"] != "user":
                break
            messages, keys = before.messages + messages, [*before.keys, *keys]
    if messages[0]["role"] == "user" and rng.random() < 0.2:
        messages.insert(0, {"role": "system", "content": rng.choice(SYSTEMS)})
    return Exercise(skill=last.skill, messages=messages, keys=tuple(keys), tools=last.tools)


def held_out(count: int = HELD_OUT) -> list[Exercise]:
    """The first `count` of the held-out exercises of every skill, alone and joined as in training.

    There are HELD_OUT a skill, always the same, and no two share a key.
    """
    rng = random.Random(_HELD_OUT_SEED)
    kept: dict[str, list[Exercise]] = {}
    seen: set[str] = set()
    wanted = {generator(rng).skill for generator, _ in SHARES for _ in range(4)}
    for _ in range(400 * HELD_OUT):
        made = exercise(rng)
        group = kept.setdefault(made.skill, [])
        if len(group) < HELD_OUT and seen.isdisjoint(made.keys):
            group.append(made)
            seen.update(made.keys)
        if all(len(kept.get(skill, ())) >= HELD_OUT for skill in wanted):
            break
    return [made for skill in sorted(kept) for made in kept[skill][:count]]


def stream(seed: int, excluded: frozenset[str]) -> Iterator[Exercise | str]:
    """Endless training documents: conversations free of the excluded keys, and prose."""
    rng = random.Random(seed)
    documentation = python_documentation()
    while True:
        if rng.random() < PROSE_SHARE:
            kind = rng.random()
            if kind < 0.7:
                yield rng.choice(documentation)
            else:
                yield story(rng) if kind < 0.85 else statements(rng)
        elif excluded.isdisjoint((made := exercise(rng)).keys):
            yield made
