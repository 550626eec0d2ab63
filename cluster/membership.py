"""Which replicas there are, as Ray Serve last told this process.

Serve makes its request routers itself and hands none out: what they know meets its readers here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NamedTuple


class Member(NamedTuple):
    """A replica that Serve runs, the first name of its model, and where its channel listens."""

    replica: str
    model: str
    host: str
    port: int


class Membership:
    """A snapshot that is never changed, only replaced. Safe from any thread.

    Serve has a router for each deployment, and each knows its own replicas.
    """

    def __init__(self) -> None:
        self._members_of: dict[str, tuple[Member, ...]] = {}
        self._watchers: list[Callable[[tuple[Member, ...]], None]] = []
        self._lock = threading.Lock()

    def publish(self, deployment: str, members: tuple[Member, ...]) -> None:
        """Replace what is known of a deployment and tell the watchers."""
        with self._lock:
            self._members_of[deployment] = members
            for watcher in self._watchers:
                watcher(self._snapshot())

    def watch(self, watcher: Callable[[tuple[Member, ...]], None]) -> None:
        """Call `watcher`, which must not block, with this snapshot and each that follows."""
        with self._lock:
            self._watchers.append(watcher)
            watcher(self._snapshot())

    def _snapshot(self) -> tuple[Member, ...]:
        return tuple(member for members in self._members_of.values() for member in members)


replicas = Membership()
"""That of this process."""
