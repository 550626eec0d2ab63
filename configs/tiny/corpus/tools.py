"""Function calls: which of the offered tools, with which arguments, and what came back."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from .exercise import Exercise, Message, assistant, turn, user, vary
from .shoal_talk import question_and_answer
from .talk import facts, small_talk
from .words import ADJECTIVES, COLORS, NOUNS, city, listed, made_up, name, noun

Draw: TypeAlias = Callable[[random.Random], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A function, the ways to ask for it, and the answer told from its result."""

    names: tuple[str, ...]
    about: str
    fields: dict[str, Draw]
    asks: tuple[str, ...]
    result: dict[str, Draw]
    told: str


def _number(low: int, high: int) -> Draw:
    return lambda rng: rng.randint(low, high)


def _of(*values: str) -> Draw:
    return lambda rng: rng.choice(values)


def _phrase(rng: random.Random) -> str:
    return f"{rng.choice(ADJECTIVES)} {noun(rng)}"


_CURRENCY = _of("EUR", "USD", "GBP", "JPY", "CHF", "SEK")
_ENDINGS = ("txt", "py", "md", "json", "csv")
_DONE = {"status": _of("ok", "done")}

TOOLS = (
    Tool(
        names=("get_weather", "weather", "get_current_weather", "lookup_weather"),
        about="Get the current weather in a city",
        fields={"city": city},
        asks=(
            "What is the weather in {city}?",
            "What's the weather like in {city} today?",
            "How is the weather in {city}?",
            "Is it raining in {city}?",
            "Weather in {city}?",
        ),
        result={
            "temperature": _number(-15, 40),
            "sky": _of("sunny", "cloudy", "rainy", "windy", "snowy", "clear"),
        },
        told="It is {sky} in {city}, {temperature} degrees.",
    ),
    Tool(
        names=("get_weather", "weather_report"),
        about="Weather of a place",
        fields={"location": city, "unit": _of("celsius", "fahrenheit")},
        asks=(
            "What is the weather in {location} in {unit}?",
            "Tell me the weather in {location}, in {unit}.",
        ),
        result={"temperature": _number(-15, 99)},
        told="It is {temperature} degrees {unit} in {location}.",
    ),
    Tool(
        names=("get_time", "current_time", "clock"),
        about="Get the local time in a city",
        fields={"city": city},
        asks=("What time is it in {city}?", "Tell me the time in {city}.", "Time in {city}?"),
        result={"time": lambda rng: f"{rng.randint(0, 23):02}:{rng.randint(0, 59):02}"},
        told="It is {time} in {city}.",
    ),
    Tool(
        names=("add", "add_numbers", "sum_numbers"),
        about="Add two numbers",
        fields={"a": _number(0, 9999), "b": _number(0, 9999)},
        asks=("Add {a} and {b}.", "What is {a} + {b}?", "Use the tool to add {a} and {b}."),
        result={"result": _number(0, 19998)},
        told="The result is {result}.",
    ),
    Tool(
        names=("multiply", "multiply_numbers"),
        about="Multiply two numbers",
        fields={"a": _number(0, 999), "b": _number(0, 999)},
        asks=("Multiply {a} by {b}.", "What is {a} times {b}?", "What is {a} * {b}?"),
        result={"result": _number(0, 998001)},
        told="The result is {result}.",
    ),
    Tool(
        names=("search", "web_search", "search_docs"),
        about="Search for a text",
        fields={"query": _phrase},
        asks=(
            "Search for {query}.",
            "Look up {query}.",
            "Find something about {query}.",
            "Can you search for {query}?",
        ),
        result={"title": _phrase, "hits": _number(1, 99)},
        told="I found {hits} results. The first is {title}.",
    ),
    Tool(
        names=("send_message", "send_mail", "send_email"),
        about="Send a message to a person",
        fields={"to": name, "text": _phrase},
        asks=(
            "Send {to} the message {text}.",
            "Write to {to}: {text}",
            "Tell {to} this: {text}",
        ),
        result=_DONE,
        told="The message to {to} was sent.",
    ),
    Tool(
        names=("set_timer", "start_timer"),
        about="Start a timer",
        fields={"minutes": _number(1, 120)},
        asks=(
            "Set a timer for {minutes} minutes.",
            "Start a {minutes} minute timer.",
            "Wake me in {minutes} minutes.",
        ),
        result=_DONE,
        told="The timer is set for {minutes} minutes.",
    ),
    Tool(
        names=("convert_currency", "exchange"),
        about="Convert an amount of money",
        fields={"amount": _number(1, 5000), "source": _CURRENCY, "target": _CURRENCY},
        asks=(
            "Convert {amount} {source} to {target}.",
            "How much is {amount} {source} in {target}?",
        ),
        result={"value": _number(1, 9000)},
        told="{amount} {source} is {value} {target}.",
    ),
    Tool(
        names=("set_light", "light"),
        about="Set the colour of a lamp",
        fields={"room": _of("kitchen", "hall", "office", "garden"), "color": _of(*COLORS)},
        asks=("Make the light in the {room} {color}.", "Set the {room} light to {color}."),
        result=_DONE,
        told="The light in the {room} is {color} now.",
    ),
    Tool(
        names=("find_person", "lookup_user", "get_user"),
        about="Look up a person by name",
        fields={"name": name},
        asks=("Who is {name}?", "Look up {name}.", "Find the user {name}."),
        result={"age": _number(18, 90), "city": city},
        told="{name} is {age} years old and lives in {city}.",
    ),
    Tool(
        names=("get_stock", "stock_level"),
        about="How many of an item are in stock",
        fields={"item": noun},
        asks=("How many {item}s are in stock?", "Is there a {item} in stock?"),
        result={"count": _number(0, 500)},
        told="There are {count} in stock.",
    ),
    Tool(
        names=("read_file", "open_file", "cat"),
        about="Read a file",
        fields={"path": lambda rng: f"{rng.choice(NOUNS)}/{noun(rng)}.{rng.choice(_ENDINGS)}"},
        asks=("Read the file {path}.", "Show me {path}.", "What is in {path}?"),
        result={"text": _phrase},
        told="The file says: {text}",
    ),
)
_VERBS = listed("open close start stop move count check show build find clean paint watch lock")
_FIELDS = listed("id name size level speed color owner place count mode label target weight")


def _invented(rng: random.Random) -> Tool:
    """A function nobody has seen, so that its name and fields must be read from the prompt."""
    verb = rng.choice(_VERBS)
    thing = noun(rng)
    fields: dict[str, Draw] = {
        field: rng.choice((_number(0, 999), made_up, noun, name))
        for field in rng.sample(_FIELDS, rng.randint(1, 3))
    }
    spoken = " and ".join(f"{field} {{{field}}}" for field in fields)
    return Tool(
        names=(f"{verb}_{thing}",),
        about=f"{verb.capitalize()} the {thing}",
        fields=fields,
        asks=(
            f"{verb.capitalize()} the {thing} with {spoken}.",
            f"Can you {verb} the {thing} with {spoken}?",
        ),
        result=_DONE,
        told=f"I did {verb} the {thing}.",
    )


def _signature(tool: Tool, called: str, arguments: dict[str, Any]) -> dict[str, Any]:
    kinds = {key: "integer" if isinstance(v, int) else "string" for key, v in arguments.items()}
    return {
        "type": "function",
        "function": {
            "name": called,
            "description": tool.about,
            "parameters": {
                "type": "object",
                "properties": {key: {"type": kind} for key, kind in kinds.items()},
                "required": list(kinds),
            },
        },
    }


def _pick(rng: random.Random) -> Tool:
    return _invented(rng) if rng.random() < 0.35 else rng.choice(TOOLS)


def _offer(rng: random.Random, wanted: dict[str, Any] | None) -> tuple[dict[str, Any], ...]:
    """One to three signatures of different names, the wanted one somewhere among them."""
    offered = {} if wanted is None else {wanted["function"]["name"]: wanted}
    for _ in range(rng.choice((0, 0, 1, 1, 2)) + (wanted is None)):
        tool = _pick(rng)
        called = rng.choice(tool.names)
        values = {key: draw(rng) for key, draw in tool.fields.items()}
        offered.setdefault(called, _signature(tool, called, values))
    signatures = list(offered.values())
    rng.shuffle(signatures)
    return tuple(signatures)


def calls(rng: random.Random) -> Exercise:
    """A question that needs one tool; the answer is the call, once in a while two of them."""
    tool = _pick(rng)
    called = rng.choice(tool.names)
    draws = [{key: draw(rng) for key, draw in tool.fields.items()}]
    question = rng.choice(tool.asks).format(**draws[0])
    if rng.random() < 0.1:
        draws.append({key: draw(rng) for key, draw in tool.fields.items()})
        question += " " + rng.choice(tool.asks).format(**draws[1])
    messages = [user(vary(rng, question)), _call(called, draws)]
    return Exercise(
        skill="tool call",
        messages=messages,
        keys=(f"tool {question}",),
        tools=_offer(rng, _signature(tool, called, draws[0])),
    )


def _call(called: str, draws: list[dict[str, Any]]) -> Message:
    functions = [{"name": called, "arguments": arguments} for arguments in draws]
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": function} for function in functions],
    }


def results(rng: random.Random) -> Exercise:
    """The whole way: question, call, the tool's answer, the sentence told from it."""
    tool = _pick(rng)
    called = rng.choice(tool.names)
    arguments = {key: draw(rng) for key, draw in tool.fields.items()}
    result = {key: draw(rng) for key, draw in tool.result.items()}
    question = rng.choice(tool.asks).format(**arguments)
    told = tool.told.format(**{**arguments, **result})
    messages = [
        user(vary(rng, question)),
        _call(called, [arguments]),
        {"role": "tool", "content": json.dumps(result)},
        assistant(told),
    ]
    if rng.random() < 0.3:
        messages += turn("Thanks!", "You are welcome.")
    return Exercise(
        skill="tool answer",
        messages=messages,
        keys=(f"tool {question}", f"result {question} {result}"),
        tools=_offer(rng, _signature(tool, called, arguments)),
    )


def idle(rng: random.Random) -> Exercise:
    """Tools are offered and the question needs none."""
    inner = rng.choice((small_talk, facts, question_and_answer))(rng)
    offered = _offer(rng, None)
    key = f"idle {inner.messages[0]['content']} {json.dumps(offered)}"
    return Exercise(skill="no tool needed", messages=inner.messages, keys=(key,), tools=offered)
