"""Which replicas there are, as Ray Serve last told this process.

Serve makes its request routers itself and hands none out: what they know meets its readers here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NamedTuple


class Member(NamedTuple):
    """A replica that Serve runs, and where its channel listens."""

    replica: str
    host: str
    port: int


class Membership:
    """A snapshot that is never changed, only replaced. Safe from any thread."""

    def __init__(self) -> None:
        self._members: tuple[Member, ...] = ()
        self._watchers: list[Callable[[tuple[Member, ...]], None]] = []
        self._lock = threading.Lock()

    def publish(self, members: tuple[Member, ...]) -> None:
        """Replace the snapshot and tell the watchers."""
        with self._lock:
            self._members = members
            for watcher in self._watchers:
                watcher(members)

    def watch(self, watcher: Callable[[tuple[Member, ...]], None]) -> None:
        """Call `watcher`, which must not block, with this snapshot and each that follows."""
        with self._lock:
            self._watchers.append(watcher)
            watcher(self._members)


replicas = Membership()
"""That of this process."""
