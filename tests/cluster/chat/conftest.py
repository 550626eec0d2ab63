"""What the tests of the terminal clients share: the server, the command, a terminal."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.chat.echo import Server

WAIT_S = 60.0
CTRL_C = "\x03"
_CONTROL = re.compile(rb"\x1b\[[0-9;?]*[a-zA-Z]|\x1b[()][A-Z0-9]|\x1b[=>]")


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


class Terminal:
    """`shoal ARGS` at a terminal of its own; keys are bytes, what it shows is text."""

    def __init__(self, args: tuple[str, ...], environ: dict[str, str]) -> None:
        self._ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "shoal", *args],
            start_new_session=True,
            preexec_fn=lambda: os.login_tty(theirs),
            pass_fds=(theirs,),
            env=environ,
        )
        os.close(theirs)
        self.raw = b""
        self._read = 0

    def until(self, part: str) -> str:
        """Wait for `part` after what was waited for before; all that was shown up to its end."""
        while True:
            text = self.text()
            place = text.find(part, self._read)
            if place >= 0:
                shown, self._read = text[self._read : place + len(part)], place + len(part)
                return shown
            shown, _, _ = select.select([self._ours], [], [], WAIT_S)
            assert shown, f"no {part!r} came: {text[self._read :]!r}"
            try:
                more = os.read(self._ours, 65536)
            except OSError:
                more = b""
            assert more, f"it ended without {part!r}: {text[self._read :]!r}"
            self.raw += more

    def text(self) -> str:
        """All that was shown, without what moves the cursor or colours."""
        return _CONTROL.sub(b"", self.raw).replace(b"\r", b"").decode(errors="replace")

    def keys(self, keys: str) -> None:
        """Type."""
        os.write(self._ours, keys.encode())

    def interrupt(self) -> None:
        """Ctrl-C once the process waits for keys: readline looks for a signal only where one ends
        its wait, so one that comes while it still draws is heard at the next key.
        """
        stat = Path(f"/proc/{self.process.pid}/stat")
        while stat.exists() and stat.read_text().rpartition(") ")[2][0] == "R":
            time.sleep(0.01)
        self.keys(CTRL_C)

    def close(self) -> None:
        """End the process, however it stands."""
        self.process.kill()
        self.process.wait()
        os.close(self._ours)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    """Makes terminals that share a home."""
    made: list[Terminal] = []

    def make(*args: str, **environ: str) -> Terminal:
        clean = {k: v for k, v in os.environ.items() if k not in ("SHOAL_API_KEY", "NO_COLOR")}
        own = {"XDG_STATE_HOME": str(tmp_path / "state"), "TERM": "xterm-256color", "COLUMNS": "80"}
        made.append(Terminal(args, {**clean, **own, **environ}))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def shoal() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `shoal ARGS` without a terminal."""

    def run(*args: str, **options: Any) -> subprocess.CompletedProcess[str]:
        environ = {k: v for k, v in os.environ.items() if k != "SHOAL_API_KEY"}
        command = [sys.executable, "-m", "shoal", *args]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=120, env=environ, **options
        )

    return run
