"""Questions that ask for JSON: facts from a sentence, key and value lists, small schemas."""

from __future__ import annotations

import json
import random
from typing import Any

from .exercise import Exercise, turn, user, vary
from .words import ADJECTIVES, COLORS, NOUNS, city, listed, made_up, name, noun

_ASK = (
    "{text} Give this as JSON with the keys {keys}.",
    "Extract {keys} as JSON: {text}",
    "{text} Answer with a JSON object with the fields {keys}.",
    "Return JSON with the fields {keys}. {text}",
    "Reply in JSON with {keys}: {text}",
    "Turn this into JSON ({keys}): {text}",
)
_KEYS = listed("""id title color size count price ready city name kind level state owner age
weight speed active status total score host port model width height unit label mode code rank""")
_JOBS = listed("baker doctor driver farmer nurse painter pilot teacher writer engineer")
_MONTHS = listed("""January February March April May June July August September October
November December""")


def _person(rng: random.Random) -> tuple[str, dict[str, Any]]:
    facts = {"name": name(rng), "age": rng.randint(5, 95), "city": city(rng)}
    return rng.choice(
        (
            "{name} is {age} years old and lives in {city}.",
            "{name} lives in {city} and is {age}.",
            "My friend {name} is {age} years old. The home town is {city}.",
        )
    ).format(**facts), facts


def _worker(rng: random.Random) -> tuple[str, dict[str, Any]]:
    facts = {"name": name(rng), "job": rng.choice(_JOBS), "city": city(rng)}
    return rng.choice(
        ("{name} works as a {job} in {city}.", "{name} is a {job} from {city}.")
    ).format(**facts), facts


def _order(rng: random.Random) -> tuple[str, dict[str, Any]]:
    facts = {"item": noun(rng), "color": rng.choice(COLORS), "quantity": rng.randint(1, 99)}
    return rng.choice(
        ("I want {quantity} {color} {item}s.", "Order {quantity} of the {item}, color {color}.")
    ).format(**facts), facts


def _product(rng: random.Random) -> tuple[str, dict[str, Any]]:
    stock = rng.random() < 0.5
    facts = {"product": noun(rng), "price": rng.randint(1, 500), "in_stock": stock}
    tail = "is in stock" if stock else "is sold out"
    return rng.choice(
        ("The {product} costs {price} dollars and {tail}.", "A {product} for {price}, it {tail}.")
    ).format(tail=tail, **facts), facts


def _event(rng: random.Random) -> tuple[str, dict[str, Any]]:
    facts = {
        "event": f"{rng.choice(ADJECTIVES)} {noun(rng)}",
        "day": rng.randint(1, 28),
        "month": rng.choice(_MONTHS),
        "place": city(rng),
    }
    return "The {event} show is on {month} {day} in {place}.".format(**facts), facts


def _pairs(rng: random.Random) -> tuple[str, dict[str, Any]]:
    keys = rng.sample(_KEYS, rng.randint(1, 4))
    facts: dict[str, Any] = {key: _value(rng) for key in keys}
    spoken = [f"{key} is {json.dumps(v) if isinstance(v, bool) else v}" for key, v in facts.items()]
    return "The " + ", ".join(spoken) + ".", facts


def _value(rng: random.Random) -> str | int | bool:
    kind = rng.random()
    if kind < 0.4:
        return rng.randint(0, 9999)
    return rng.random() < 0.5 if kind < 0.5 else rng.choice((rng.choice(NOUNS), made_up(rng)))


_SENTENCES = (_person, _worker, _order, _product, _event, _pairs, _pairs)


def forms(rng: random.Random) -> Exercise:
    """A sentence and the names of the fields; sometimes the wish for JSON is the system's."""
    text, facts = rng.choice(_SENTENCES)(rng)
    if len(facts) > 1 and rng.random() < 0.35:
        kept = rng.sample(sorted(facts), rng.randint(1, len(facts)))
        facts = {key: facts[key] for key in kept}
    answer = json.dumps(facts)
    if rng.random() < 0.15:
        return _schema(text, facts, answer)
    *head, last = facts
    listed = f"{', '.join(head)} and {last}" if head and rng.random() < 0.5 else ", ".join(facts)
    question = rng.choice(_ASK).format(text=text, keys=listed)
    return Exercise(
        skill="json", messages=turn(vary(rng, question), answer), keys=(f"json {text} {listed}",)
    )


def _schema(text: str, facts: dict[str, Any], answer: str) -> Exercise:
    names = {str: "string", int: "integer", bool: "boolean"}
    schema = {
        "type": "object",
        "properties": {key: {"type": names[type(value)]} for key, value in facts.items()},
        "required": list(facts),
    }
    order = f"Answer with JSON that fits this schema: {json.dumps(schema)}"
    return Exercise(
        skill="json",
        messages=[{"role": "system", "content": order}, *turn(text, answer)],
        keys=(f"json {text} schema {list(facts)}",),
    )


def lists(rng: random.Random) -> Exercise:
    """A JSON array of what the question lists."""
    values = [noun(rng) for _ in range(rng.randint(2, 5))]
    if rng.random() < 0.4:
        numbers = rng.sample(range(100), rng.randint(2, 5))
        text, answer = ", ".join(map(str, numbers)), json.dumps(numbers)
    else:
        text, answer = ", ".join(values), json.dumps(values)
    ask = rng.choice(
        ("Write as a JSON array: {x}", "Give {x} as a JSON list.", "Make a JSON array of {x}.")
    )
    messages = [user(vary(rng, ask.format(x=text))), {"role": "assistant", "content": answer}]
    return Exercise(skill="json", messages=messages, keys=(f"json list {text}",))
