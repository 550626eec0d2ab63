"""How gateways learn which prefixes a replica holds: all of them once, then what changes.

A message is sent before the step that begins or ends a stream, so that the next turn of a
conversation finds its own beginning, and with every beat. A gateway that leaves too much unread is
told nothing more until it has read all, and then everything anew.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Protocol

from ..engine.holdings import Holdings
from . import wire

MAX_KEYS = 4096
"""In one message, so that no step waits long behind it on the wire."""

MAX_UNREAD = 1 << 20


class Reader(Protocol):
    """One gateway."""

    @property
    def unread(self) -> int:
        """Bytes that were sent and could not leave yet."""
        ...

    def send(self, frame: bytes) -> None:
        """Send without waiting."""
        ...


class News:
    """Tells readers of `holdings`; safe between the engine's thread and others."""

    def __init__(self, holdings: Holdings) -> None:
        self._holdings = holdings
        self._told = holdings.watch()
        self._behind: dict[Reader, bool] = {}
        self._lock = threading.Lock()

    def join(self, reader: Reader) -> None:
        """Tell a new reader all that is held."""
        with self._lock:
            self._spread()
            self._behind[reader] = False
            self._tell_all(reader)

    def leave(self, reader: Reader) -> None:
        """Tell it nothing more."""
        with self._lock:
            self._behind.pop(reader, None)

    def tell(self) -> None:
        """Tell everybody what has changed since the last time."""
        with self._lock:
            self._spread()
            for reader, behind in self._behind.items():
                if behind and not reader.unread:
                    self._behind[reader] = False
                    self._tell_all(reader)

    def _spread(self) -> None:
        change = self._holdings.changes()
        if not change:
            return
        self._told.update(change.gained)
        self._told.difference_update(change.lost)
        frames = [wire.frame(message) for message in _messages(change.gained, change.lost)]
        for reader, behind in self._behind.items():
            if behind or reader.unread > MAX_UNREAD:
                self._behind[reader] = True
                continue
            for frame in frames:
                reader.send(frame)

    def _tell_all(self, reader: Reader) -> None:
        for message in _messages([*self._told], [], anew=True):
            reader.send(wire.frame(message))


def _messages(gained: list[bytes], lost: list[bytes], anew: bool = False) -> Iterator[wire.Cached]:
    for start in range(0, max(1, len(gained), len(lost)), MAX_KEYS):
        part = slice(start, start + MAX_KEYS)
        yield wire.Cached(b"".join(gained[part]), b"".join(lost[part]), anew and not start)
