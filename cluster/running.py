"""The serves that run on this machine: a small file each, which only its own process writes.

    $XDG_RUNTIME_DIR/shoal/PID.json, or ~/.cache/shoal/run/PID.json where there is no such folder

A serve writes its file when it starts and removes it when it ends. One that died without doing so
is known by its process, told apart by when that began, and removed by whoever finds it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from . import logs
from .config import ServeConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """One serve. `since` is in seconds since 1970; `born` names the process beyond its number."""

    pid: int
    born: str
    machine: str
    since: float
    name: str
    models: tuple[str, ...]
    url: str
    port: int
    replicas: int
    local: bool
    log_dir: str
    shutdown_timeout: float
    ready: bool = False


class Registration:
    """The file of this process."""

    def __init__(self, config: ServeConfig) -> None:
        pid = os.getpid()
        self._entry = Running(
            pid=pid,
            born=born(pid) or "",
            machine=machine(),
            since=time.time(),
            name=config.name,
            models=tuple(model.name for model in config.models),
            url=config.url,
            port=config.port,
            replicas=sum(model.replicas for model in config.models),
            local=config.local,
            log_dir=str(logs.folder(config)),
            shutdown_timeout=config.shutdown_timeout,
        )
        self._path = _place() / f"{pid}.json"
        self._write()

    def ready(self) -> None:
        """The model answers."""
        self._entry = dataclasses.replace(self._entry, ready=True)
        self._write()

    def close(self) -> None:
        """The serve has ended."""
        with contextlib.suppress(OSError):
            self._path.unlink()

    def _write(self) -> None:
        """Whole or not at all, for whoever reads meanwhile; without a place for it, not at all."""
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            draft = self._path.with_suffix(".draft")
            draft.write_bytes(msgspec.json.encode(self._entry))
            draft.replace(self._path)


@contextlib.contextmanager
def registered(config: ServeConfig) -> Iterator[Registration]:
    """Inside, `running()` of any process of this user shows this one as serving `config`."""
    registration = Registration(config)
    try:
        yield registration
    finally:
        registration.close()


def running() -> list[Running]:
    """The serves of this user on this machine, oldest first; leftovers of dead ones are removed."""
    here, found = machine(), []
    for place in _places():
        for path in sorted(place.glob("*.json")):
            entry = _read(path)
            if entry is None or entry.machine != here:
                continue
            if alive(entry):
                found.append(entry)
            else:
                with contextlib.suppress(OSError):
                    path.unlink()
    return sorted(found, key=lambda entry: entry.since)


def alive(entry: Running) -> bool:
    """Whether its process is still there, and not another one under its number."""
    return born(entry.pid) == entry.born


def born(pid: int) -> str | None:
    """When a process began, in a form that no other process of its number shares; None of a dead
    one."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None if Path("/proc/self").exists() else _asked(pid)
    state, *fields = stat.rpartition(")")[2].split()  # the name before it may hold anything
    if state in "ZX":
        return None
    return f"{_boot()}/{fields[18]}"


def machine() -> str:
    """This machine, or this container: where process numbers mean the same."""
    with contextlib.suppress(OSError):
        return f"{socket.gethostname()}/{os.readlink('/proc/self/ns/pid')}"
    return socket.gethostname()


def _asked(pid: int) -> str | None:
    """`born` where there is no /proc."""
    asked = ["ps", "-o", "lstart=", "-p", str(pid)]
    return subprocess.run(asked, capture_output=True, text=True).stdout.strip() or None


def _boot() -> str:
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def _places() -> list[Path]:
    """Where files may lie: a serve started by cron has no XDG_RUNTIME_DIR, a login shell has."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    places = [cache / "shoal" / "run"]
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        places.insert(0, Path(runtime) / "shoal")
    return places


def _place() -> Path:
    """The first place that can be written to, else the last."""
    for place in _places():
        if os.access(place if place.exists() else place.parent, os.W_OK):
            return place
    return _places()[-1]


def _read(path: Path) -> Running | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Running)
    except (OSError, msgspec.MsgspecError):
        return None
