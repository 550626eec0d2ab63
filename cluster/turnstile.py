"""Lets requests through while the gateway serves, and turns them away while it drains."""

from __future__ import annotations

import asyncio
from typing import Any

from .errors import error_body

CODE = "shutting_down"

_REFUSAL = error_body("the server is shutting down; try again later", "server_error", None, CODE)
_HEALTH = b'{"status":"down","models":{}}'


class Turnstile:
    """An ASGI application before another one: counts its requests, and answers 503 once closed."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._inside = 0
        self._closed = False
        self._empty = asyncio.Event()
        self._empty.set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._closed:
            await _refuse(scope, send)
            return
        self._inside += 1
        self._empty.clear()
        try:
            await self._app(scope, receive, send)
        finally:
            self._inside -= 1
            if not self._inside:
                self._empty.set()

    @property
    def num_inside(self) -> int:
        """Requests that have not been answered yet."""
        return self._inside

    async def drain(self, timeout_s: float) -> bool:
        """Close, and wait for those inside; whether all left in time."""
        self._closed = True
        try:
            async with asyncio.timeout(timeout_s):
                await self._empty.wait()
        except TimeoutError:
            return False
        return True


async def _refuse(scope: Any, send: Any) -> None:
    """503, in the form that the route has at other times too."""
    body = _HEALTH if scope["path"].endswith("/health") else _REFUSAL
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"retry-after", b"5"),
        (b"connection", b"close"),
        *((name, value) for name, value in scope["headers"] if name == b"x-request-id"),
    ]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": body})
