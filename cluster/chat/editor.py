'''What a person types: one message, of one line or several, with the history of earlier ones.

A line that ends with a backslash goes on; """ begins and ends a message of several lines; pasted
text is kept whole. Lines come through readline where Python has it.
'''

from __future__ import annotations

import contextlib
import json
import os
import select
import sys
from pathlib import Path
from types import ModuleType

PROMPT, MORE = "> ", "... "
QUOTES = '"""'
KEPT = 1000
PASTE_S = 0.02


class Editor:
    """Reads messages from the terminal. History lies in `history`, one JSON text a line."""

    def __init__(self, history: Path | None = None) -> None:
        self._history = history or history_file()
        self._readline = _readline()
        self._said: list[str] = []
        if self._readline is not None:
            self._said = _load(self._history)
            for text in self._said:
                self._readline.add_history(text)

    def read(self) -> str:
        """The next message, without marks of its lines. Raises EOFError, KeyboardInterrupt."""
        text = self._line(PROMPT)
        if text.lstrip().startswith(QUOTES):
            text = self._quoted(text.lstrip()[len(QUOTES) :])
        while text.endswith("\\"):
            text = text[:-1] + "\n" + self._line(MORE)
        self._remember(text)
        return text

    def _quoted(self, text: str) -> str:
        while QUOTES not in text:
            text += "\n" + self._line(MORE)
        before, _, after = text.rpartition(QUOTES)
        return (before + after).strip("\n")

    def _line(self, prompt: str) -> str:
        """A line, or all lines of what was pasted."""
        lines = [input(prompt)]
        if self._pastes_lines():
            while select.select([sys.stdin], [], [], PASTE_S)[0]:
                lines.append(input())
        return "\n".join(lines)

    def _pastes_lines(self) -> bool:
        """Whether pasted lines come one by one; GNU readline takes a paste as a whole."""
        return self._readline is None or "libedit" in (self._readline.__doc__ or "")

    def _remember(self, text: str) -> None:
        if not text.strip() or (self._said and self._said[-1] == text):
            return
        self._said.append(text)
        if self._readline is not None:
            self._readline.add_history(text)
        with contextlib.suppress(OSError):
            _append(self._history, text)


def history_file() -> Path:
    """Where the history of all conversations lies."""
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(state).expanduser() / "shoal" / "chat_history"


def _readline() -> ModuleType | None:
    try:
        import readline
    except ImportError:
        return None
    readline.set_auto_history(False)
    if "libedit" not in (readline.__doc__ or ""):
        readline.parse_and_bind("set enable-bracketed-paste on")
    return readline


def _load(path: Path) -> list[str]:
    """The last messages kept. What is no JSON text is passed over."""
    found = []
    with contextlib.suppress(OSError):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines()[-KEPT:]:
            with contextlib.suppress(ValueError):
                text = json.loads(line)
                found += [text] if isinstance(text, str) else []
    return found


def _append(path: Path, text: str) -> None:
    """Add a message; nobody else may read the file. It is cut when it holds twice what is kept."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    whole = len(lines) >= 2 * KEPT
    flags = os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if whole else os.O_APPEND)
    with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
        if whole:
            file.writelines(lines[-KEPT:])
        file.write(json.dumps(text).encode() + b"\n")
