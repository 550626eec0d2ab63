"""The error tree as HTTP: a status, OpenAI's error object, and what a client should do next.

| error | status | code |
|---|---|---|
| InvalidRequest | 400 | invalid_value |
| ContextTooLong | 400 | context_length_exceeded |
| UnknownModel | 404 | model_not_found |
| Overloaded | 429, Retry-After | rate_limit_exceeded |
| EngineLost, WorkerLost | 503, Retry-After | engine_unavailable |
| FatalRequest | 500 | request_kills_engine |
| HTTPFailure | its own | its own |
| anything else | 500 | internal_error |
"""

from __future__ import annotations

import math
from typing import NamedTuple

import msgspec

from ..engine.errors import (
    ContextTooLong,
    EngineLost,
    FatalRequest,
    InvalidRequest,
    Overloaded,
    RequestError,
    ShoalError,
    UnknownModel,
)

RETRY_AFTER_S = 2


class HTTPFailure(ShoalError):
    """A refusal of the door itself, before any engine is asked."""

    def __init__(
        self, status: int, code: str, message: str, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message, status, code, retry_after_s)
        self.status = status
        self.code = code
        self.retry_after_s = retry_after_s

    @property
    def message(self) -> str:
        """What a person is told."""
        return str(self.args[0])

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return type(self), (self.status, self.code, self.message, self.retry_after_s)


class Failure(NamedTuple):
    """An error as it leaves; `headers` are those that only errors have."""

    status: int
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...]


class _Kind(NamedTuple):
    status: int
    type: str
    code: str


_KINDS: tuple[tuple[type[ShoalError], _Kind], ...] = (
    (ContextTooLong, _Kind(400, "invalid_request_error", "context_length_exceeded")),
    (UnknownModel, _Kind(404, "invalid_request_error", "model_not_found")),
    (InvalidRequest, _Kind(400, "invalid_request_error", "invalid_value")),
    (RequestError, _Kind(400, "invalid_request_error", "invalid_request")),
    (Overloaded, _Kind(429, "rate_limit_error", "rate_limit_exceeded")),
    (EngineLost, _Kind(503, "server_error", "engine_unavailable")),
    (FatalRequest, _Kind(500, "server_error", "request_kills_engine")),
)
_TYPES = {401: "authentication_error", 429: "rate_limit_error"}


def failure(error: BaseException) -> Failure:
    """How `error` is answered. What was not raised on purpose is answered without its words."""
    kind = _kind(error)
    message = error.message if isinstance(error, ShoalError) else "internal error; see the log"
    body = error_body(message, kind.type, getattr(error, "param", None), kind.code)
    return Failure(kind.status, body, _headers(error))


def error_body(message: str, type_: str, param: str | None, code: str) -> bytes:
    """OpenAI's error object."""
    error = {"message": message, "type": type_, "param": param, "code": code}
    return msgspec.json.encode({"error": error})


def _kind(error: BaseException) -> _Kind:
    if isinstance(error, HTTPFailure):
        default = "invalid_request_error" if error.status < 500 else "server_error"
        return _Kind(error.status, _TYPES.get(error.status, default), error.code)
    for family, kind in _KINDS:
        if isinstance(error, family):
            return kind
    return _Kind(500, "server_error", "internal_error")


def _headers(error: BaseException) -> tuple[tuple[bytes, bytes], ...]:
    seconds = getattr(error, "retry_after_s", None)
    if seconds is None and isinstance(error, EngineLost):
        seconds = RETRY_AFTER_S
    headers: tuple[tuple[bytes, bytes], ...] = ()
    if seconds is not None:
        headers += ((b"retry-after", b"%d" % max(1, math.ceil(seconds))),)
    if isinstance(error, HTTPFailure) and error.status == 401:
        headers += ((b"www-authenticate", b"Bearer"),)
    return headers
