"""A conversation at a keyboard: prompt, answer, commands, until Ctrl-D."""

from __future__ import annotations

import sys

from rich.console import Console

from ...engine.errors import ShoalError
from ..escapes import clean
from .conversation import Conversation, answering
from .editor import Editor
from .slash import command, told

LEAVING = "(Ctrl-D or /exit leaves)"


def talk(conversation: Conversation, *, plain: bool = False) -> None:
    """Talk until Ctrl-D or `/exit`. Ctrl-C interrupts an answer; elsewhere it says how to leave."""
    console = Console(highlight=False)
    editor = Editor()
    print(f"{clean(conversation.model)} at {conversation.client.url}. /help lists the commands.\n")
    while True:
        try:
            text = editor.read()
            if text.strip():
                _follow(conversation, text, console, plain=plain)
        except KeyboardInterrupt:
            print(f"\n{LEAVING}")
        except EOFError:
            print()
            return


def _follow(conversation: Conversation, text: str, console: Console, *, plain: bool) -> None:
    """Follow a command, or take a turn. Raises EOFError of `/exit`."""
    try:
        answer = command(conversation, text)
        if answer is not None:
            print(f"{clean(answer)}\n")
            return
        print()
        with answering(console, plain=plain) as write:
            turn = conversation.ask(text[1:] if text.startswith("//") else text, write)
        console.print(f"\n[{told(turn)}]\n", style="dim", markup=False)
    except ShoalError as error:
        print(f"error: {clean(error.message)}\n", file=sys.stderr)
