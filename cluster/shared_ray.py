"""The Ray that the engines of this process have in common."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue

import ray

_lock = threading.Lock()
_users = 0
_holder: _Holder | None = None


@contextmanager
def shared_ray() -> Iterator[None]:
    """Inside, a Ray runs: the one that this process has; else the one at RAY_ADDRESS is joined, or
    one of our own is started, and the last engine to leave ends it. Raises EngineLost.
    """
    global _users, _holder
    with _lock:
        counts = _users > 0 or not ray.is_initialized()
        if counts and not _users:
            _holder = _Holder()
        _users += counts
    try:
        yield
    finally:
        with _lock:
            _users -= counts
            if counts and not _users and _holder is not None:
                _holder.end()
                _holder = None


def starts_own() -> bool:
    """Whether `shared_ray` would start a Ray of this machine alone."""
    return not ray.is_initialized() and not os.environ.get("RAY_ADDRESS")


class _Holder:
    """A thread that lives as long as its Ray, whose processes the kernel ends together with the
    thread that started them.
    """

    def __init__(self) -> None:
        begun: SimpleQueue[BaseException | None] = SimpleQueue()
        self._leave = threading.Event()
        self._thread = threading.Thread(
            target=self._hold, args=(begun,), name="shoal-ray", daemon=True
        )
        self._thread.start()
        if (failure := begun.get()) is not None:
            self._thread.join()
            raise failure

    def end(self) -> None:
        """Leave the Ray."""
        self._leave.set()
        self._thread.join()

    def _hold(self, begun: SimpleQueue[BaseException | None]) -> None:
        try:
            with _some_ray():
                begun.put(None)
                self._leave.wait()
        except BaseException as error:
            begun.put(error)


@contextmanager
def _some_ray() -> Iterator[None]:
    from .launch import joined_ray, private_ray

    with contextlib.ExitStack() as stack:
        if address := os.environ.get("RAY_ADDRESS"):
            stack.enter_context(joined_ray(address))
        else:
            logs = stack.enter_context(tempfile.TemporaryDirectory(prefix="shoal-logs-"))
            stack.enter_context(private_ray(Path(logs)))
        yield
