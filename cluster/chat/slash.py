"""The commands inside a conversation: `/help`, `/system TEXT`, `/stats` and others."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from ...engine.errors import ShoalError
from .conversation import Conversation
from .turn import Turn

_COMMAND = re.compile(r"/([a-z?]+)(?:\s+(.*))?", re.DOTALL)


class SlashError(ShoalError):
    """A command that cannot be followed."""


class Command(NamedTuple):
    """What a command does, and how `/help` describes it."""

    run: Callable[[Conversation, str], str]
    argument: str
    help: str


def command(conversation: Conversation, text: str) -> str | None:
    """Follow `text` where it is a command, and return what to print; None where it is a message.

    A path such as /etc/hosts is a message, and so is what begins with two slashes. Raises
    SlashError, ClientError, and EOFError of `/exit`.
    """
    match = _COMMAND.fullmatch(text.strip())
    if match is None:
        return None
    name, argument = match[1], (match[2] or "").strip()
    if name not in COMMANDS:
        raise SlashError(f"no command /{name}; /help lists all, //{name} says it to the model")
    return COMMANDS[name].run(conversation, argument)


def _help(conversation: Conversation, argument: str) -> str:
    rows = [(f"/{name} {c.argument}".rstrip(), c.help) for name, c in COMMANDS.items() if c.help]
    wide = max(len(left) for left, _ in rows)
    keys = [
        'A \\ at the end of a line, or """ before and after, make a message of several lines.',
        "Ctrl-C interrupts an answer, Ctrl-D leaves. //text sends /text.",
    ]
    return "\n".join([*(f"{left:<{wide}}  {right}" for left, right in rows), "", *keys])


def _system(conversation: Conversation, argument: str) -> str:
    if argument:
        conversation.system = argument
    return f"system: {conversation.system}" if conversation.system else "no system message"


def _reset(conversation: Conversation, argument: str) -> str:
    conversation.said.clear()
    return "the conversation begins anew" + (
        "; the system message stays" if conversation.system else ""
    )


def _model(conversation: Conversation, argument: str) -> str:
    names = [str(card["id"]) for card in conversation.client.models()]
    if argument and argument not in names:
        raise SlashError(f"{argument!r} is not served here, but: {', '.join(names)}")
    conversation.model = argument or conversation.model
    return "\n".join(f"{'*' if name == conversation.model else ' '} {name}" for name in names)


def _stats(conversation: Conversation, argument: str) -> str:
    turns = conversation.turns
    if not turns:
        return "nothing was said yet"
    output = sum(turn.output_tokens for turn in turns)
    writing = sum(turn.seconds - (turn.first_s or 0.0) for turn in turns)
    first = [turn.first_s for turn in turns if turn.first_s is not None]
    mean = f", first token after {sum(first) / len(first):.2f} s on average" if first else ""
    speed = max(output - len(turns), 0) / max(writing, 1e-6)
    return (
        f"last answer: {told(turns[-1])}\n"
        f"all {len(turns)}: {sum(turn.prompt_tokens for turn in turns)} prompt tokens, "
        f"{output} output tokens, {speed:.1f} tokens/s{mean}"
    )


def told(turn: Turn) -> str:
    """A turn in figures."""
    first = f", first after {turn.first_s:.2f} s" if turn.first_s is not None else ""
    speed = f", {turn.tokens_per_s:.1f} tokens/s" if turn.output_tokens > 1 else ""
    prompt = f"{turn.prompt_tokens} prompt tokens, " if turn.prompt_tokens else ""
    stopped = ", interrupted" if turn.interrupted else ""
    return f"{prompt}{turn.output_tokens} output tokens{speed}{first}{stopped}"


def _save(conversation: Conversation, argument: str) -> str:
    if not argument:
        raise SlashError("say where: /save FILE; a name that ends with .json makes JSON of it")
    path = Path(argument).expanduser()
    messages = conversation.messages()
    if path.suffix == ".json":
        text = json.dumps(messages, indent=2, ensure_ascii=False)
    else:
        text = "\n\n".join(f"## {m['role']}\n\n{m['content']}" for m in messages)
    try:
        with path.open("x", encoding="utf-8", errors="replace") as file:
            file.write(text + "\n")
    except FileExistsError:
        raise SlashError(f"{path} is there already; choose another name") from None
    except OSError as error:
        raise SlashError(f"{path} cannot be written: {error.strerror}") from None
    return f"{len(messages)} messages are in {path}"


def _exit(conversation: Conversation, argument: str) -> str:
    raise EOFError


COMMANDS: Mapping[str, Command] = {
    "help": Command(_help, "", "this list"),
    "system": Command(_system, "TEXT", "tell the model how to behave; alone, show what it is told"),
    "model": Command(_model, "NAME", "talk to another model of the server; alone, list them"),
    "reset": Command(_reset, "", "forget what was said"),
    "stats": Command(_stats, "", "tokens, tokens/s and time to the first token"),
    "save": Command(_save, "FILE", "write the conversation to a file"),
    "exit": Command(_exit, "", "leave"),
    "quit": Command(_exit, "", ""),
    "bye": Command(_exit, "", ""),
    "?": Command(_help, "", ""),
}
