"""TCP ports of this machine: whether one can be bound, who holds it, which is free."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import socket
from pathlib import Path
from typing import NamedTuple

from ..engine.errors import ConfigError

_LISTEN = "0A"
_FIRST_UNUSUAL = 20_000  # below lie ports taken by habit, and those of Ray's workers (10002-19999)
_TRIES = 100


class Holder(NamedTuple):
    """The process that listens on a port."""

    pid: int
    command: str


def check_port(host: str, port: int) -> None:
    """Bind and release `host:port`, without SO_REUSEPORT, so that a shared port is a conflict too.

    Raises ConfigError that names the holder and a free port, or says why `host` cannot be bound.
    """
    family, address = _resolve(host, port)
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
            probe.listen(1)
        except OSError as error:
            raise ConfigError(_refusal(host, port, error), "port") from None


def free_port(host: str = "127.0.0.1", near: int = 0) -> int:
    """A port that could be bound a moment ago: the first free one after `near`, else any.

    Any means, where possible, one that the kernel gives to nobody who does not ask for it: by the
    time it is taken, others have opened connections.
    """
    ours = range(_FIRST_UNUSUAL, _first_ephemeral())
    some = random.sample(ours, min(len(ours), _TRIES))
    for port in range(near + 1, min(near + _TRIES, 65536)) if near else some:
        if _can_bind(host, port):
            return port
    family, address = _resolve(host, 0)
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind(address)
        return int(probe.getsockname()[1])


def holder(port: int) -> Holder | None:
    """Who listens on `port`; None where that cannot be seen (another user's process, no /proc)."""
    inodes = _listening_inodes(port)
    if not inodes:
        return None
    wanted = {f"socket:[{inode}]" for inode in inodes}
    for process in Path("/proc").glob("[0-9]*"):
        if _holds(process, wanted):
            return Holder(int(process.name), _command(process))
    return None


def _first_ephemeral() -> int:
    """From where on the kernel chooses ports by itself; 0 where that cannot be seen."""
    with contextlib.suppress(OSError, ValueError):
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    return 0


def _resolve(host: str, port: int) -> tuple[socket.AddressFamily, tuple[str, int]]:
    try:
        found = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as error:
        raise ConfigError(f"host {host!r} cannot be resolved: {error}", "host") from None
    family, _, _, _, address = found[0]
    return family, address[:2]  # type: ignore[return-value]


def _can_bind(host: str, port: int) -> bool:
    try:
        check_port(host, port)
    except ConfigError:
        return False
    return True


def _refusal(host: str, port: int, error: OSError) -> str:
    if isinstance(error, PermissionError):
        return f"port {port} needs rights that this user lacks; choose one of 1024 or above"
    if error.errno != errno.EADDRINUSE:
        return f"{host}:{port} cannot be bound: {error.strerror or error}"
    found = holder(port)
    by = f"process {found.pid} ({found.command})" if found else "a process that cannot be seen"
    free = free_port(host, port)
    return f"port {port} is in use by {by}; stop it, or take a free one: --port {free}"


def _listening_inodes(port: int) -> set[str]:
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTEN and int(fields[1].rsplit(":", 1)[1], 16) == port:
                    inodes.add(fields[9])
    return inodes


def _holds(process: Path, wanted: set[str]) -> bool:
    with contextlib.suppress(OSError):
        for handle in (process / "fd").iterdir():
            with contextlib.suppress(OSError):
                if os.readlink(handle) in wanted:
                    return True
    return False


def _command(process: Path) -> str:
    with contextlib.suppress(OSError):
        words = process.joinpath("cmdline").read_bytes().split(b"\0")
        line = b" ".join(words).decode(errors="replace").strip()
        return line if len(line) <= 120 else line[:117] + "..."
    return "?"
