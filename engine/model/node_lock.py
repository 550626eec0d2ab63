"""One process of a node at a time, by a lock on a file."""

from __future__ import annotations

import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.warning("another process is fetching %s; waiting for it", name)
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        log.debug("no lock on %s: %s", name, error)
