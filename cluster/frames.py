"""The frames of a socket on an event loop, taken as they come: no task waits for each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from . import wire


class Frames(asyncio.Protocol):
    """Cuts what comes into frames: `next` waits for one, `hand_to` has each handed over."""

    def __init__(self) -> None:
        self._unread = bytearray()
        self._changed = asyncio.Event()
        self._on_frame: Callable[[bytes], None] | None = None
        self._on_end: Callable[[Exception | None], None] | None = None
        self._ended = False
        self._error: Exception | None = None

    async def next(self, bound: int) -> bytes:
        """The next frame's message. Raises BadFrame above `bound`; IncompleteReadError, OSError."""
        while (body := wire.take_frame(self._unread, bound)) is None:
            if self._ended:
                raise self._error or asyncio.IncompleteReadError(bytes(self._unread), None)
            self._changed.clear()
            await self._changed.wait()
        return body

    def hand_to(
        self, on_frame: Callable[[bytes], None], on_end: Callable[[Exception | None], None]
    ) -> None:
        """Call `on_frame` with every further message, and `on_end` once: with None where the other
        side has ended, else with what went wrong, a BadFrame of `on_frame` too.
        """
        self._on_frame, self._on_end = on_frame, on_end
        self._hand_over()
        if self._ended:
            self._end(self._error)

    def leave(self) -> None:
        """Hand nothing more over."""
        self._on_frame = self._on_end = None

    def data_received(self, data: bytes) -> None:
        self._unread += data
        self._changed.set()
        self._hand_over()

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended, self._error = True, exc
        self._changed.set()
        self._end(exc)

    def _hand_over(self) -> None:
        try:
            while self._on_frame and (body := wire.take_frame(self._unread)) is not None:
                self._on_frame(body)
        except wire.BadFrame as error:
            self._end(error)

    def _end(self, error: Exception | None) -> None:
        on_end = self._on_end
        self.leave()
        if on_end is not None:
            on_end(error)
