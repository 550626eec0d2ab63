"""What every HTTP request passes: its id, its key, its count, and the last net for errors."""

from __future__ import annotations

import hmac
import logging
import time
import uuid
from collections.abc import Iterable, MutableMapping
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from . import logs
from .errors import HTTPFailure, failure
from .metrics import Metrics
from .serving import LEFT

OPEN_PATHS = ("/health", "/-/healthz")
"""Routes that need no key: probes have none."""

log = logging.getLogger(__name__)
_MAX_ID = 256


class Guard:
    """ASGI middleware before all routes.

    Answers 401 without one of `keys` (any will do where there are none), gives each request an id
    (`X-Request-Id`, the caller's own if it sent one) and returns it, counts and logs the answer.
    A proxy may strip `root_path` from what it passes on, or leave it.
    """

    def __init__(
        self, app: ASGIApp, keys: Iterable[str], metrics: Metrics, root_path: str = ""
    ) -> None:
        self._app = app
        self._root_path = root_path
        self._keys = tuple(key.encode() for key in keys)
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.monotonic()
        scope["root_path"] = self._root_path
        headers = dict(scope["headers"])
        request_id = _request_id(headers)
        scope.setdefault("state", {})["request_id"] = request_id
        echoed = (b"x-request-id", request_id.encode())
        status = 0

        async def named(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), echoed]
            await send(message)

        try:
            if self._allows(self._route(scope), headers):
                with logs.request_id(request_id):
                    await self._app(scope, receive, named)
            else:
                refusal = HTTPFailure(
                    401,
                    "invalid_api_key",
                    "a valid API key is needed: send it "
                    "as `Authorization: Bearer KEY` or as `x-api-key: KEY`",
                )
                await send_failure(refusal, named)
        except Exception as error:
            log.exception("%s: %s %s failed", request_id, scope["method"], scope["path"])
            if not status:  # what has begun, the web server breaks off
                await send_failure(error, named)
        finally:
            self._tell(scope, request_id, status, time.monotonic() - began)

    def _route(self, scope: Scope) -> str:
        return str(scope["path"]).removeprefix(self._root_path)

    def _allows(self, path: str, headers: dict[bytes, bytes]) -> bool:
        if not self._keys or path in OPEN_PATHS:
            return True
        scheme, _, bearer = headers.get(b"authorization", b"").partition(b" ")
        offered = [headers.get(b"x-api-key", b"")]
        if scheme.lower() == b"bearer":
            offered.append(bearer.strip())
        # Every key is compared with every offer, so that time tells nothing about either.
        matches = [hmac.compare_digest(key, offer) for key in self._keys for offer in offered]
        return any(matches)

    def _tell(self, scope: Scope, request_id: str, status: int, seconds: float) -> None:
        route = scope.get("route")
        handler = getattr(route, "path", "other")
        status = status or LEFT
        self._metrics.answered(handler, scope["method"], status, seconds)
        polled = self._route(scope) in (*OPEN_PATHS, "/metrics")
        log.log(
            logging.DEBUG if polled else logging.INFO,
            "%s %s %s %s %.3fs",
            request_id,
            scope["method"],
            scope["path"],
            "left by the client" if status == LEFT else status,
            seconds,
        )


async def send_failure(error: BaseException, send: Send) -> None:
    """Answer with an error object."""
    told = failure(error)
    length = (b"content-length", b"%d" % len(told.body))
    headers = [(b"content-type", b"application/json"), length, *told.headers]
    await send({"type": "http.response.start", "status": told.status, "headers": headers})
    await send({"type": "http.response.body", "body": told.body})


def _request_id(headers: dict[bytes, bytes]) -> str:
    given = headers.get(b"x-request-id", b"")
    if 0 < len(given) <= _MAX_ID and all(0x21 <= byte <= 0x7E for byte in given):
        return given.decode()
    return uuid.uuid4().hex
