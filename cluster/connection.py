"""One HTTP connection: what may come before a request is one, and how the rest is refused."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from .errors import Failure, HTTPFailure, failure

MAX_HEAD_BYTES = 64 * 2**10
"""What a request line and its headers may take."""


_NOT_HTTP = HTTPFailure(400, "invalid_http", "this is not a valid HTTP request")
_TOO_LONG = HTTPFailure(
    431,
    "headers_too_large",
    f"the request line and its headers are longer than {MAX_HEAD_BYTES} bytes",
)


class Together:
    """A transport that sends the head of an answer together with what follows it at once: of many
    that begin in one step each would else cost a write more, and wake its client twice.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._head = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """See asyncio.WriteTransport; a head leaves with the next write, or before the event loop's
        next turn.
        """
        if self._head:
            data, self._head = self._head + data, b""
        elif data.startswith(b"HTTP/"):
            self._head = data
            self._loop.call_soon(self._flush)
            return
        self._transport.write(data)

    def close(self) -> None:
        """See asyncio.BaseTransport."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._head:
            head, self._head = self._head, b""
            self._transport.write(head)


class Connection(HttpToolsProtocol):
    """uvicorn's connection, with a bound on the head of a request, which uvicorn has not.

    What is no HTTP at all is refused with an error object, like everything else.
    """

    _in_head = True
    _head_bytes = 0
    _fault = _NOT_HTTP

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio.Protocol."""
        super().connection_made(transport)
        self.transport: Any = Together(transport)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(_TOO_LONG)

    def on_headers_complete(self) -> None:
        """Called by the parser; what it raises becomes `send_400_response`."""
        self._in_head = False
        if len(self.url) + sum(len(n) + len(v) + 4 for n, v in self.headers) > MAX_HEAD_BYTES:
            self._fault = _TOO_LONG
            raise self._fault
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Called by the parser."""
        self._in_head, self._head_bytes = True, 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse what cannot be parsed."""
        self._refuse(self._fault)

    def _refuse(self, error: HTTPFailure) -> None:
        if not self.transport.is_closing():
            self.transport.write(_answer(failure(error)))
            self.transport.close()


def _answer(told: Failure) -> bytes:
    headers = {
        b"content-type": b"application/json",
        b"content-length": b"%d" % len(told.body),
        b"connection": b"close",
    }
    lines = b"".join(b"%b: %b\r\n" % header for header in headers.items())
    return STATUS_LINE[told.status] + lines + b"\r\n" + told.body
