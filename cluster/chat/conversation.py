"""`shoal chat`: a conversation with a model, on a terminal or through a pipe."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console

from ..client import Client
from ..escapes import clean
from .turn import Turn, take_turn

Message = dict[str, str]


@dataclass(slots=True, kw_only=True)
class Conversation:
    """What was said, with whom, and what it took."""

    client: Client
    model: str
    options: dict[str, Any]
    system: str | None = None
    said: list[Message] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)

    def messages(self) -> list[Message]:
        """All that the model is told."""
        first = [{"role": "system", "content": self.system}] if self.system else []
        return [*first, *self.said]

    def ask(self, text: str, write: Callable[[str], None]) -> Turn:
        """Say `text` and take the answer; a message that got no word of one is taken back.

        Raises ClientError.
        """
        self.said.append({"role": "user", "content": text})
        body = {"model": self.model, "messages": self.messages(), **self.options}
        heard: list[str] = []

        def listen(piece: str) -> None:
            heard.append(piece)
            write(piece)

        ended = False
        try:
            turn = take_turn(self.client, body, listen)
            ended = not turn.interrupted
        finally:
            if heard or ended:
                self.said.append({"role": "assistant", "content": "".join(heard)})
            else:
                self.said.pop()
        self.turns.append(turn)
        return turn


def converse(conversation: Conversation, *, quick: str | None = None, plain: bool = False) -> None:
    """Talk until the input ends: each line of it a turn, or `quick` alone.

    `plain`: Markdown is shown as it is written. Raises ClientError, KeyboardInterrupt.
    """
    console = Console(highlight=False)
    for text in [quick] if quick is not None else _lines():
        if text.strip():
            with answering(console, plain=plain) as write:
                turn = conversation.ask(text, write)
            if turn.interrupted:
                raise KeyboardInterrupt


def _lines() -> Iterator[str]:
    for line in sys.stdin:
        yield line.rstrip("\n")


@contextmanager
def answering(console: Console, *, plain: bool = False) -> Iterator[Callable[[str], None]]:
    """Takes an answer in pieces and shows it: off a terminal exactly as it is, on one harmless."""
    if not console.is_terminal:
        with _as_it_is(str) as write:
            yield write
    elif plain or console.is_dumb_terminal:
        with _as_it_is(clean) as write:
            yield write
    else:
        from .markdown import MarkdownStream

        with MarkdownStream(console) as stream:
            yield lambda piece: stream.write(clean(piece))


@contextmanager
def _as_it_is(harmless: Callable[[str], str]) -> Iterator[Callable[[str], None]]:
    def write(piece: str) -> None:
        sys.stdout.write(harmless(piece))
        sys.stdout.flush()

    try:
        yield write
    finally:
        write("\n")
