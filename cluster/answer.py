"""One request's answer, from its generations to the client's socket.

The request's own task only waits for the client to go away. Everything else happens in the
callbacks that bring updates, but for what takes long to write: a task waits until it is written
beside the event loop. Status and headers leave with the first bytes, so that a refusal by the
engine is a status and not an event.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from starlette.responses import Response

from ..engine.errors import EngineLost, Overloaded, ShoalError
from .errors import Failure, failure
from .failover import Failover
from .formats import DONE, Format, merged
from .off_loop import LONG, off_loop
from .sender import Send, Sender
from .state import Choice
from .stream import Delta, Generation

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

MAX_WAITING_NAMES = 1 << 22
"""How many log probabilities, 120 bytes each, may wait to be written; with more a stream fails."""

log = logging.getLogger(__name__)

_JSON = (b"content-type", b"application/json")
_STREAM = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)


class _Piece(NamedTuple):
    """A part of an answer that is yet to be made: how many tokens it names, how many of them it has
    to itself, and whether it is the last one.
    """

    size: int
    held: int
    last: bool
    make: Callable[[], bytes]


class Answer(Response):
    """An ASGI answer that begins its `generations` when it is called and ends with them.

    A client that goes away, or leaves too much unread, has its generations aborted. A stream that
    fails says so in an `error` event behind what came before, and `[DONE]` follows it.
    """

    def __init__(
        self,
        format: Format,
        *,
        failover: Failover,
        stream: bool,
        include_usage: bool,
    ) -> None:
        self.generations: Sequence[Generation] = ()
        self.background = None
        self._format = format
        self._failover = failover
        self._stream = stream
        self._include_usage = include_usage
        self._deltas: dict[Choice, list[Delta]] = {}
        self._begun: set[Generation] = set()
        self._counted: set[Generation] = set()
        self._num_open = 0
        self._error: Failure | None = None
        self._gone = ""
        self._pieces: deque[_Piece] = deque()
        self._num_held = 0
        self._writing: asyncio.Task[None] | None = None

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Answer. Returns when the client has the answer, or is gone."""
        self._task = asyncio.current_task()
        self._sender = Sender(send, self._give_up)
        self._num_open = sum(len(generation.choices) for generation in self.generations)
        try:
            self._begin()
            while (await receive())["type"] != "http.disconnect":
                pass
        except asyncio.CancelledError:
            if not self._gone:
                await self._break_off()
                raise
            if self._task is not None:
                self._task.uncancel()
        finally:
            self._close()

    def on_delta(self, generation: Generation, choice: Choice, delta: Delta) -> None:
        """Send, or keep, what is new of a choice."""
        if delta.finish is not None:
            self._num_open -= 1
        first = choice not in self._deltas
        if first:
            self._deltas[choice] = []
            if choice is generation.choices[0]:
                self._count_begin(generation)
        if generation.ended:
            self._count_end(generation, "error")
        if self._stream:
            self._send_chunk(generation, choice, delta, first)
            return
        self._deltas[choice].append(delta)
        if not self._num_open:
            self._send_whole()

    def on_error(self, error: ShoalError) -> None:
        """Tell the client, behind what waits to be written, that there is no (more) answer, and
        give up what is left of it.
        """
        if self._error is None:
            self._error = failure(error)
            self._abort("error")
            if self._error.status >= 500:
                log.warning("%s failed: %s", self._format.heading.id, error)
        if self._writing is None:
            self._send_error(self._error)

    def _begin(self) -> None:
        for generation in self.generations:
            try:
                self._failover.begin(generation)
                self._begun.add(generation)
            except ShoalError as error:
                self.on_error(error)
            if self._error is not None:
                return

    def _send_chunk(
        self, generation: Generation, choice: Choice, delta: Delta, first: bool
    ) -> None:
        size, last = _num_named(generation, delta, with_prompt=first), not self._num_open
        if self._at_once(size):
            self._send(self._format.chunk(generation, choice, delta, choice.num_tokens), last)
            return
        make = partial(self._format.chunk, generation, choice, delta, choice.num_tokens)
        self._put(_Piece(size, _num_held(delta), last, make))

    def _send_whole(self) -> None:
        ends = [
            (generation, choice, merged(self._deltas[choice]))
            for generation in self.generations
            for choice in generation.answers()
        ]
        size = sum(_num_named(generation, delta, with_prompt=True) for generation, _, delta in ends)
        self._put(_Piece(size, 0, True, partial(self._format.whole, ends)))

    def _at_once(self, size: int) -> bool:
        """Whether what names `size` tokens is short, and nothing waits to be written before it."""
        return self._writing is None and size < LONG

    def _put(self, piece: _Piece) -> None:
        """Send a piece, after what was put before it."""
        if self._at_once(piece.size):
            self._send(piece.make(), piece.last)
            return
        self._pieces.append(piece)
        self._num_held += piece.held
        if self._writing is None:
            self._writing = asyncio.get_running_loop().create_task(self._write_pieces())
        elif self._num_held > MAX_WAITING_NAMES and not piece.last:
            self.on_error(
                Overloaded(
                    f"{self._num_held} log probabilities wait to be written, and at most "
                    f"{MAX_WAITING_NAMES} may; ask for fewer of each token, or do not stream"
                )
            )

    def _send(self, data: bytes, last: bool) -> None:
        if not self._stream:
            self._send_json(Failure(200, data, ()))
            return
        if not self._sender.begun:
            self._sender.begin(200, _STREAM)
            data = self._format.opening(self.generations) + data
        if last:
            if self._include_usage:
                data += self._format.usage(self.generations)
            data += DONE
        self._sender.write(data, last=last)

    async def _write_pieces(self) -> None:
        """Make what takes long beside the event loop, and what waits for it behind it."""
        try:
            while self._pieces:
                piece = self._pieces.popleft()
                self._num_held -= piece.held
                self._send(await off_loop(piece.size, piece.make), piece.last)
        except Exception:
            log.exception("%s: an answer could not be written", self._format.heading.id)
            self._pieces.clear()
            self.on_error(ShoalError("internal error; see the log"))
        finally:
            self._writing = None
        if self._error is not None:
            self._send_error(self._error)

    def _send_error(self, told: Failure) -> None:
        if self._sender.begun:
            self._sender.write(b"data: %b\n\n%b" % (told.body, DONE), last=True)
        else:
            self._send_json(told)

    def _send_json(self, told: Failure) -> None:
        length = (b"content-length", b"%d" % len(told.body))
        self._sender.begin(told.status, (_JSON, length, *told.headers))
        self._sender.write(told.body, last=True)

    def _abort(self, reason: str) -> None:
        for generation in self.generations:
            self._failover.drop(generation)
            if generation in self._begun:
                self._count_end(generation, reason)

    def _count_begin(self, generation: Generation) -> None:
        if generation.meter is not None:
            generation.meter.began(generation)

    def _count_end(self, generation: Generation, unfinished: str) -> None:
        if generation not in self._counted:
            self._counted.add(generation)
            if generation.meter is not None:
                generation.meter.ended(generation, unfinished)

    def _give_up(self, reason: str) -> None:
        log.warning("%s was given up: %s", self._format.heading.id, reason)
        self._gone = reason
        if self._task is not None:
            self._task.cancel()

    async def _break_off(self) -> None:
        """The server ends before the answer does: say so, as far as one turn of the loop allows,
        which is too short for what waits to be written.
        """
        self._stop_writing()
        self.on_error(EngineLost("the server is shutting down"))
        await asyncio.sleep(0)

    def _close(self) -> None:
        """Part from all that knows this answer: in a cycle with it prompt and text would stay in
        memory until Python looks through everything for garbage.
        """
        self._abort("abort")
        self._sender.close()
        self._stop_writing()
        self.generations = ()
        self._deltas.clear()
        self._begun.clear()
        self._counted.clear()
        self._task = None

    def _stop_writing(self) -> None:
        self._pieces.clear()
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None


def _num_named(generation: Generation, delta: Delta, *, with_prompt: bool) -> int:
    """About how many tokens are named in what is told of a choice: those with log probabilities,
    and the alternatives beside them.
    """
    params = generation.request.params
    num = len(delta.tokens) * _names(params.logprobs)
    if with_prompt:
        num += len(generation.request.prompt) * _names(params.prompt_logprobs)
    return num


def _num_held(delta: Delta) -> int:
    """How many log probabilities wait in memory while a delta does."""
    return sum(1 + len(entry.top) for entry in delta.logprobs or ())


def _names(count: int | None) -> int:
    """Names at each position where `count` alternatives were asked for; -1 are all there are."""
    return 0 if count is None else LONG if count < 0 else 1 + count
