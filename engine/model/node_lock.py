"""One process of a node at a time, by a lock on a file."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PATIENCE_S = 3.0
"""Waiting that is worth no word: whoever only looks at a model holds its lock for moments."""

POLL_S = 0.02

log = logging.getLogger(__name__)


@contextmanager
def alone_on_this_node(place: Path, name: str) -> Iterator[None]:
    """Hold the lock `name` of the folder `place`, made if need be, while the body runs.

    Where a lock cannot be had, as on a read-only or an old network file system, the body runs
    without: what it guards must be right without it, only dearer.
    """
    path = place / ".locks" / f"shoal--{name.replace('/', '--')}.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as error:
        log.debug("no lock at %s: %s", path, error)
        yield
        return
    with file:
        _take(file.fileno(), name)
        yield  # closing the file gives the lock back, as does the end of the process


def _take(file: int, name: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    try:
        while time.monotonic() < deadline:
            with contextlib.suppress(BlockingIOError):
                return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            time.sleep(POLL_S)
        log.warning("another process is fetching %s; waiting for it", name)
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        log.debug("no lock on %s: %s", name, error)
