"""`shoal stop`: end what is served on this machine, and say how it goes."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from typing import Annotated

import typer

from ...engine.errors import ConfigError, ShoalError
from ..exits import FAILED
from ..ports import holder
from ..running import Running, alive, running

POLL_S = 0.05
GRACE_S = 20.0
"""What a serve may take beyond its `--shutdown-timeout`: its replicas and its Ray end after it."""

TAKE_OFF_S = 120.0
APP = "shoal"

Which = Annotated[
    str | None, typer.Argument(metavar="NAME|PORT", help="Name, model, port or process of one.")
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        help="Take the application NAME (default: shoal) off this Ray, whose serve has gone.",
        metavar="auto|HOST:PORT",
    ),
]
All = Annotated[bool, typer.Option("--all", help="Stop everything that is served here.")]
Force = Annotated[bool, typer.Option("--force", help="Kill it, without letting answers end.")]
Timeout = Annotated[
    float | None,
    typer.Option(
        help="Seconds to wait (default: its shutdown timeout and 20; with --ray-address 120).",
        metavar="X",
    ),
]


def stop(
    which: Which = None,
    every: All = False,
    force: Force = False,
    timeout: Timeout = None,
    ray_address: RayAddress = None,
) -> None:
    """Stop a server; running answers get --shutdown-timeout seconds to end."""
    if ray_address is not None:
        _take_off(ray_address, which or APP, timeout, kills=every or force)
        return
    entries = running() if every else [choose(running(), which)]
    if not entries:
        print("nothing is served here")
    for entry in entries:
        signal_to(entry, force=force)
    ended = [_ends(entry, timeout, force=force) for entry in entries]
    if not all(ended):
        raise typer.Exit(FAILED)


def _take_off(address: str, app: str, timeout: float | None, *, kills: bool) -> None:
    """End an application where no serve of this machine does."""
    if kills:
        raise ConfigError(
            "--ray-address takes one application, and lets its answers end: leave "
            "--all and --force out",
            "ray_address",
        )
    from ..removal import take_off

    begin = time.monotonic()
    take_off(address, app, TAKE_OFF_S if timeout is None else timeout)
    _tell(f"{app} is taken off the Ray at {address} after {time.monotonic() - begin:.1f} s")


def choose(entries: list[Running], which: str | None) -> Running:
    """The one serve that `which` names: by its name, a model of its, its port or its process.

    Without `which`, the only one there is. Raises ShoalError.
    """
    found = [entry for entry in entries if which is None or which in _words(entry)]
    if len(found) == 1:
        return found[0]
    shown = ", ".join(f"{entry.name} on port {entry.port}" for entry in found or entries)
    if found:
        raise ShoalError(f"several are served here; say the port of one: {shown}")
    if entries:
        raise ShoalError(f"{which!r} is none of what is served here: {shown}")
    raise ShoalError("nothing is served here")


def signal_to(entry: Running, *, force: bool) -> None:
    """Ask a serve to end, or kill it; the guard of its Ray then ends the rest."""
    what = "killing" if force else "stopping"
    patience = "" if force else f"; running answers get {entry.shutdown_timeout:g} s to end"
    _tell(f"{what} {_called(entry)}{patience}")
    if alive(entry):
        with contextlib.suppress(ProcessLookupError):
            os.kill(entry.pid, signal.SIGKILL if force else signal.SIGTERM)


def _ends(entry: Running, timeout: float | None, *, force: bool) -> bool:
    """Wait for a serve to end, and tell; whether it has in time."""
    begin = time.monotonic()
    patience = GRACE_S + (0 if force else entry.shutdown_timeout) if timeout is None else timeout
    while alive(entry) or (force and holder(entry.port)):
        if time.monotonic() - begin > patience:
            _tell(f"{_called(entry)} still runs after {patience:g} s; --force kills it")
            return False
        time.sleep(POLL_S)
    _tell(f"{_called(entry)} has ended after {time.monotonic() - begin:.1f} s")
    running()  # forgets what was killed
    return True


def _called(entry: Running) -> str:
    return f"{entry.name} on port {entry.port} (process {entry.pid})"


def _words(entry: Running) -> set[str]:
    return {entry.name, str(entry.port), str(entry.pid), *entry.models}


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
