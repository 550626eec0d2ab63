"""The faults of `shoal bench chaos`: what befalls the processes of a serve on this machine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ..engine.errors import ConfigError, EngineLost
from .ports import free_port
from .running import running

FAULTS: Mapping[str, str] = {
    "kill": "SIGKILL of a replica",
    "worker": "SIGKILL of a rank's worker",
    "gateway": "SIGKILL of a gateway",
    "stop": "SIGSTOP of a replica, SIGCONT later",
    "term": "SIGTERM of a replica",
}
_TITLES = {"worker": "WorkerActor", "gateway": ":Gateway"}
_SIGNALS = {"stop": signal.SIGSTOP, "term": signal.SIGTERM}
START_S = 300.0
POLL_S = 0.05
KNOWN_S = 1.0
"""After so long the door knows of a fault."""


def named(words: str) -> tuple[str, ...]:
    """The faults that are asked for, with commas between them. Raises ConfigError."""
    faults = tuple(words.split(","))
    for fault in faults:
        if fault not in FAULTS:
            raise ConfigError(f"--faults knows {', '.join(FAULTS)}; got {fault!r}", "faults")
    return faults


class Processes:
    """Strikes the descendants of `serve_pid`; a stopped one goes on after `stop_s`.

    Raises ConfigError for a fault that could befall nobody.
    """

    words = FAULTS

    def __init__(self, serve_pid: int, faults: Sequence[str], stop_s: float) -> None:
        self._serve_pid = serve_pid
        self._stop_s = stop_s
        for fault in faults:
            if not targets(serve_pid, fault):
                what = FAULTS[fault].split(",")[0].partition(" of ")[2]
                raise ConfigError(
                    f"process {serve_pid} has not got {what} on this machine for {fault!r}",
                    "faults",
                )

    async def strike(self, kind: str, number: int) -> int | None:
        """See `chaos.Faults`."""
        found = targets(self._serve_pid, kind)
        if not found:
            return None
        pid = found[number % len(found)]
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, _SIGNALS.get(kind, signal.SIGKILL))
            if kind == "stop":
                try:
                    await asyncio.sleep(self._stop_s)
                finally:
                    os.kill(pid, signal.SIGCONT)
        await asyncio.sleep(KNOWN_S)
        return pid


def targets(serve_pid: int, kind: str) -> list[int]:
    """The processes below `serve_pid` that a fault of this kind may befall."""
    parents, titles = {}, {}
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            stat = (place / "stat").read_text().rpartition(")")[2].split()
            parents[int(place.name)] = int(stat[1])
            titles[int(place.name)] = (place / "cmdline").read_bytes().decode(errors="replace")

    def below(pid: int) -> bool:
        while pid in parents and pid != serve_pid:
            pid = parents[pid]
        return pid == serve_pid

    def fits(title: str) -> bool:
        gateway = ":Gateway" in title
        return _TITLES.get(kind, "Replica:") in title and gateway == (kind == "gateway")

    return sorted(pid for pid, title in titles.items() if fits(title) and below(pid))


@contextlib.contextmanager
def served(arguments: Sequence[str]) -> Iterator[tuple[str, int]]:
    """A serve of its own with these arguments, once it is ready: its URL and its process.

    Raises EngineLost when it does not come up.
    """
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="shoal-chaos-") as folder:
        output = Path(folder) / "output"
        with output.open("w") as to:
            process = subprocess.Popen(
                [sys.executable, "-m", "shoal", "serve", *arguments, "--port", str(port)],
                stdout=to,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
        try:
            until = time.monotonic() + START_S
            while not any(entry.ready for entry in running() if entry.pid == process.pid):
                if process.poll() is not None or time.monotonic() > until:
                    raise EngineLost(f"the server did not start:\n{output.read_text()[-2000:]}")
                time.sleep(POLL_S)
            yield f"http://127.0.0.1:{port}", process.pid
        finally:
            process.terminate()
            process.wait()
