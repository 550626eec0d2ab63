"""Where the progress of a start is shown: a terminal, a file, or another process's terminal."""

from __future__ import annotations

import sys
import threading
from typing import IO, TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID


class Screen(Protocol):
    """What `Progress` draws on. Safe from any thread."""

    def show(self, phase: str) -> None:
        """A phase begins."""
        ...

    def advance(self, done_bytes: int, total_bytes: int) -> None:
        """How far it has come."""
        ...

    def hide(self) -> None:
        """It has ended; harmless when repeated."""
        ...

    def say(self, line: str) -> None:
        """A line that stays."""
        ...

    def greet(self, text: str) -> None:
        """The banner: the start is over."""
        ...


class Terminal:
    """On a terminal the phase under way has a spinner or a bar of bytes, elsewhere nothing.

    Lines go to `progress` (default stderr), the banner to `out` (default stdout).
    """

    def __init__(self, out: IO[str] | None = None, progress: IO[str] | None = None) -> None:
        self._out = out or sys.stdout
        self._progress = progress or sys.stderr
        self._lock = threading.Lock()
        self._bar: Bar | None = None
        self._task: TaskID | None = None

    def show(self, phase: str) -> None:
        """See Screen."""
        if not self._progress.isatty():
            return
        with self._lock:
            self._bar = _live_bar(self._progress)
            self._task = self._bar.add_task(phase, total=None)
            self._bar.start()

    def advance(self, done_bytes: int, total_bytes: int) -> None:
        """See Screen."""
        with self._lock:
            if self._bar is not None and self._task is not None:
                self._bar.update(self._task, completed=done_bytes, total=total_bytes or None)

    def hide(self) -> None:
        """See Screen."""
        with self._lock:
            if self._bar is not None:
                self._bar.stop()
                self._bar = None

    def say(self, line: str) -> None:
        """See Screen."""
        with self._lock:
            if self._bar is not None:
                self._bar.console.print(line, highlight=False, markup=False, soft_wrap=True)
            else:
                print(line, file=self._progress, flush=True)

    def greet(self, text: str) -> None:
        """See Screen."""
        print(text, file=self._out, flush=True)


def _live_bar(file: IO[str]) -> Bar:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
        TransferSpeedColumn,
    )

    class Amount(DownloadColumn):
        """Bytes and their pace, once there are any."""

        def render(self, task):  # type: ignore[no-untyped-def]
            if not task.total:
                return ""
            return super().render(task) + "  " + TransferSpeedColumn().render(task)

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(24), Amount())
    return Progress(*columns, TimeElapsedColumn(), console=Console(file=file), transient=True)
