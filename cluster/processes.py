"""Sees to it that nothing of a Ray session outlives its driver, however the driver ends.

`Sweeper` runs this file as a program of its own, which waits for the driver's end of a pipe to
close. It imports only the standard library and nothing of shoal.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

WAIT_S = 10.0


class Sweeper:
    """Ends the processes that have files open in `folder`, and removes it, once this process ends
    or calls `close`."""

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, str(folder), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C in the terminal is not for it
        )

    def close(self) -> None:
        """Let it do its work and wait until it has."""
        self._process.communicate()


def holding(folder: Path) -> set[int]:
    """The processes with a file open below `folder`: every process of a Ray session logs there."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if any(_is_below(handle, folder) for handle in (process / "fd").iterdir()):
                found.add(int(process.name))
    return found


def _is_below(handle: Path, folder: Path) -> bool:
    try:
        return os.readlink(handle).startswith(f"{folder}/")
    except OSError:
        return False


def end_all(folder: Path, spared: int) -> None:
    """Kill the processes with a file open below `folder`, but for `spared`, and wait till they are
    gone."""
    until = time.monotonic() + WAIT_S
    while (left := holding(folder) - {spared}) and time.monotonic() < until:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def _sweep(folder: Path, driver: int) -> None:
    sys.stdin.buffer.read()
    end_all(folder, driver)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    _sweep(Path(sys.argv[1]), int(sys.argv[2]))
