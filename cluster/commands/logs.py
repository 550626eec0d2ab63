"""`shoal logs`: what the processes of a server log, as one stream."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from ...engine.errors import ShoalError
from .. import logs as places
from ..escapes import clean
from ..log_lines import Entry, Follower, last
from ..running import running
from .stop import choose

POLL_S = 0.2
COLOURS = ("cyan", "magenta", "green", "yellow", "blue")

Which = Annotated[
    str | None, typer.Argument(metavar="NAME|PORT", help="Name, model, port or process of one.")
]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Go on with what is added.")]
Count = Annotated[int, typer.Option("--lines", "-n", help="How many entries.", metavar="N", min=0)]


Place = Annotated[
    Path | None, typer.Option("--log-dir", help="The folder that serve was given.", metavar="DIR")
]


def logs(
    which: Which = None, follow: Follow = False, lines: Count = 100, log_dir: Place = None
) -> None:
    """Show the logs of a server: of its gateways, replicas and of itself, in the order of time."""
    folder = log_dir or _folder(which)
    if not folder.is_dir():
        raise ShoalError(f"there is no folder {folder}; `shoal ps --json` says where logs lie")
    console = Console(soft_wrap=True, highlight=False)
    with contextlib.closing(Follower(folder)) as follower:
        for entry in last(folder, lines):
            _print(console, entry)
        while follow:
            for entry in follower.new():
                _print(console, entry)
            time.sleep(POLL_S)


def _folder(which: str | None) -> Path:
    """The logs of what is served here, or else was. Raises ShoalError."""
    entries = running()
    with contextlib.suppress(ShoalError):
        return Path(choose(entries, which).log_dir)
    kept = _kept(which)
    if len(kept) == 1 or (kept and which is None and not entries):
        return kept[-1]
    if kept and which is not None:
        names = ", ".join(folder.name for folder in kept)
        raise ShoalError(f"there are logs of several; say the port of one: {names}")
    return Path(choose(entries, which).log_dir)


def _kept(which: str | None) -> list[Path]:
    """Logs in the usual place, NAME-PORT each, of all or of that name or port; newest last."""
    found = []
    for folder in places.home().glob("*-*"):
        name, _, port = folder.name.rpartition("-")
        if folder.is_dir() and which in (None, name, port, folder.name):
            found.append(folder)
    return sorted(found, key=lambda folder: folder.stat().st_mtime)


def _print(console: Console, entry: Entry) -> None:
    style = COLOURS[sum(map(ord, entry.source)) % len(COLOURS)]
    for line in clean(entry.text).splitlines():
        text = Text.assemble((f"{entry.source:<10} ", style), line)
        console.print(text, soft_wrap=True)
