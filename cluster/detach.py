"""`serve --detach`: a serve in the background, whose start is shown here.

The serve is a new process in a session of its own, so that no terminal ends it. It writes what its
screen would show into a pipe, a JSON array a line: the name of Screen's method, then its arguments.
What it prints itself goes to console.log beside its other logs.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from . import logs
from .config import ServeConfig
from .exits import DONE, FAILED, INTERRUPTED
from .launch import import_path
from .screen import Screen, Terminal

PIPE = "SHOAL_SCREEN_PIPE"
"""Environment variable: the file descriptor that a detached serve's screen goes to."""

SHOWN = ("show", "advance", "hide", "say", "greet")


class Pipe:
    """The Screen of a detached serve. Once the banner is out, lines go to stderr."""

    def __init__(self, descriptor: int) -> None:
        os.set_inheritable(descriptor, False)  # else Ray's processes would hold it open
        self._pipe = os.fdopen(descriptor, "w", encoding="utf-8")
        self._lock = threading.Lock()

    def show(self, phase: str) -> None:
        """See Screen."""
        self._send("show", phase)

    def advance(self, done_bytes: int, total_bytes: int) -> None:
        """See Screen."""
        self._send("advance", done_bytes, total_bytes)

    def hide(self) -> None:
        """See Screen."""
        self._send("hide")

    def say(self, line: str) -> None:
        """See Screen."""
        if not self._send("say", line):
            print(line, file=sys.stderr, flush=True)

    def greet(self, text: str) -> None:
        """See Screen; the launcher leaves then."""
        self._send("greet", text)
        with self._lock, contextlib.suppress(OSError):
            self._pipe.close()

    def _send(self, *event: object) -> bool:
        """Whether there is still somebody to read it."""
        with self._lock:
            if self._pipe.closed:
                return False
            try:
                self._pipe.write(json.dumps(event) + "\n")
                self._pipe.flush()
            except OSError:  # the launcher was ended; the serve goes on
                with contextlib.suppress(OSError):
                    self._pipe.close()
                return False
            return True


def screen_of_launcher() -> Pipe | None:
    """The screen that `detach` gave this process; None in one that it did not start."""
    descriptor = os.environ.pop(PIPE, None)
    return Pipe(int(descriptor)) if descriptor else None


def detach(args: Sequence[str], config: ServeConfig, screen: Screen | None = None) -> int:
    """Start `shoal serve ARGS` in the background and show its start; the exit code of that.

    `config` is what `args` say. Returns once it is ready or has failed, with its error shown.
    Raises KeyboardInterrupt after stopping it, when interrupted before it was ready.
    """
    screen = screen or Terminal()
    with logs.console(config) as output:
        console = Path(str(output.name))
        ours, theirs = os.pipe()
        try:
            process = _start(args, output, theirs)
        finally:
            os.close(theirs)
    with os.fdopen(ours, encoding="utf-8") as events:
        try:
            ready = _follow(events, screen)
        except KeyboardInterrupt:
            screen.hide()
            _end(process, screen.say)
            raise
    if ready:
        return DONE
    screen.hide()
    code = process.wait()
    screen.say(_last_words(console))
    return code if code > 0 else INTERRUPTED if code == -signal.SIGINT else FAILED


def _start(args: Sequence[str], output: IO[bytes], pipe: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-P", "-m", "shoal", "serve", *args]
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        pass_fds=(pipe,),
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": import_path(), PIPE: str(pipe)},
    )


def _follow(events: IO[str], screen: Screen) -> bool:
    """Show what comes until the end; whether the banner was part of it."""
    greeted = False
    for line in events:
        name, *arguments = json.loads(line)
        assert name in SHOWN, name
        getattr(screen, name)(*arguments)
        greeted = greeted or name == "greet"
    return greeted


def _end(process: subprocess.Popen[bytes], say: Callable[[str], None]) -> None:
    """Stop a serve that is not ready yet, and wait for its end; at the next Ctrl-C at once."""
    say("  stopping it")
    process.terminate()
    try:
        process.wait()
    except KeyboardInterrupt:
        process.kill()
        process.wait()


def _last_words(console: Path) -> str:
    """What a serve that failed has printed."""
    said = console.read_text(encoding="utf-8", errors="replace").strip()
    return said or f"error: it ended without a word; its logs are in {console.parent}"
