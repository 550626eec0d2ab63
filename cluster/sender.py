"""Writes one HTTP answer in pieces, from the callbacks that bring them.

No task waits for a stream's next token: what a step brings is written by the callback itself, and
all that waits goes out in one write. Only while a client reads more slowly than its tokens come
does a task exist, which waits for the client.
"""

from __future__ import annotations

import asyncio
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable, MutableMapping
from functools import partial
from typing import Any

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Header = tuple[bytes, bytes]

MAX_WAITING_BYTES = 1 << 20
"""What may wait for one slow reader; a stream that would exceed it is given up."""


class Sender:
    """The way out of one answer.

    `begin` once, then `write`, the last one with `last`. Nothing is sent before control returns to
    the event loop. `give_up` is called once, when more than `limit` bytes wait for the client or
    when it cannot be written to any more, but not once it is closed; later writes are dropped.
    """

    __slots__ = (
        "_due",
        "_give_up",
        "_head",
        "_last",
        "_limit",
        "_loop",
        "_pieces",
        "_send",
        "_waiting",
        "_writer",
        "begun",
        "given_up",
    )

    def __init__(
        self, send: Send, give_up: Callable[[str], None], limit: int = MAX_WAITING_BYTES
    ) -> None:
        self._send = send
        self._give_up: Callable[[str], None] | None = give_up
        self._limit = limit
        self._loop = asyncio.get_running_loop()
        self._head: MutableMapping[str, Any] | None = None
        self._pieces: list[bytes] = []
        self._waiting = 0
        self._due = False
        self._last = False
        self._writer: asyncio.Task[None] | None = None
        self.begun = False
        self.given_up = False

    def begin(self, status: int, headers: Iterable[Header]) -> None:
        """Set the status line and headers, which leave with the first write."""
        self.begun = True
        self._head = {"type": "http.response.start", "status": status, "headers": list(headers)}

    def write(self, data: bytes, last: bool = False) -> None:
        """Send `data`, together with whatever else is written in this turn of the event loop."""
        if self.given_up or self._last:
            return
        self._pieces.append(data)
        self._waiting += len(data)
        self._last = last
        if self._writer is not None and self._waiting > self._limit:
            self._stop(f"the client left {self._waiting} bytes unread")
        elif not self._due:
            self._due = True
            self._loop.call_soon(self._flush)

    def close(self) -> None:
        """Send nothing more, and forget whom to tell."""
        self.given_up = True
        self._give_up = None
        self._pieces.clear()
        if self._writer is not None:
            self._writer.cancel()

    def _flush(self) -> None:
        self._due = False
        if self._writer is None and not self.given_up:
            self._writer = run_eagerly(self._drain())

    async def _drain(self) -> None:
        try:
            if self._head is not None:
                head, self._head = self._head, None
                await self._send(head)
            while self._pieces:
                body = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
                last = self._last
                self._pieces.clear()
                self._waiting = 0
                await self._send(
                    {"type": "http.response.body", "body": body, "more_body": not last}
                )
        except OSError as error:
            self._stop(f"the client cannot be written to: {error}")
        finally:
            self._writer = None

    def _stop(self, reason: str) -> None:
        self.given_up = True
        self._pieces.clear()
        if self._give_up is not None:
            self._give_up(reason)


def run_eagerly(work: Coroutine[Any, Any, None]) -> asyncio.Task[None] | None:
    """Run `work` at once; if it has to wait, a task that goes on with it, else None."""
    try:
        awaited = work.send(None)
    except StopIteration:
        return None
    return asyncio.get_running_loop().create_task(_go_on(work, awaited))


async def _go_on(work: Coroutine[Any, Any, None], awaited: Any) -> None:
    await _rest(work, awaited)


@types.coroutine
def _rest(work: Coroutine[Any, Any, None], awaited: Any) -> Generator[Any, Any, None]:
    """The rest of a coroutine whose first step has already been made and waits for `awaited`."""
    while True:
        try:
            yield awaited
        except BaseException as error:
            resume = partial(work.throw, error)
        else:
            resume = partial(work.send, None)
        try:
            awaited = resume()
        except StopIteration:
            return
        finally:
            del resume  # an error in it knows this frame, and the body that was being sent
