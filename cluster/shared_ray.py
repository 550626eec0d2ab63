"""The Ray that the engines of this process have in common."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray

_lock = threading.Lock()
_ours = contextlib.ExitStack()
_users = 0


@contextmanager
def shared_ray() -> Iterator[None]:
    """Inside, a Ray runs: the one that this process has; else the one at RAY_ADDRESS is joined, or
    one of our own is started, and the last engine to leave ends it. Raises EngineLost.
    """
    global _users
    with _lock:
        counts = _users > 0 or not ray.is_initialized()
        if counts and not _users:
            _begin()
        _users += counts
    try:
        yield
    finally:
        with _lock:
            _users -= counts
            if counts and not _users:
                _ours.close()


def _begin() -> None:
    from .launch import joined_ray, private_ray

    if address := os.environ.get("RAY_ADDRESS"):
        _ours.enter_context(joined_ray(address))
        return
    logs = Path(tempfile.mkdtemp(prefix="shoal-logs-"))
    _ours.callback(shutil.rmtree, logs, ignore_errors=True)
    _ours.enter_context(private_ray(logs))
