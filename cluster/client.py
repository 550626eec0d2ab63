"""A small client of any OpenAI-compatible server, for the terminal: standard library only."""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from http.client import HTTPException, HTTPResponse, RemoteDisconnected
from ssl import SSLCertVerificationError, SSLError
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, Request, build_opener, getproxies, proxy_bypass

from ..engine.errors import ShoalError

LOOPBACK = ("127.0.0.1", "localhost", "::1")


class ClientError(ShoalError):
    """The server could not be reached, refused the request, or broke off its answer.

    `status` is HTTP's where it refused, else 0.
    """

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message, status)
        self.status = status


class Client:
    """Talks to the server at `url`, with or without `/v1` at its end.

    Proxies of the environment are used, but never for this machine.
    """

    def __init__(self, url: str, api_key: str | None = None, timeout_s: float = 600.0) -> None:
        self.url = base(url)
        self.headers = {"Content-Type": "application/json", "User-Agent": "shoal"}
        if api_key:
            self.headers["Authorization"] = f"Bearer {api_key}"
        self._opener = build_opener(ProxyHandler({})) if _near(self.url) else build_opener()
        self._timeout_s = timeout_s

    def model(self) -> str:
        """The name of the first model served. Raises ClientError."""
        return str(self.models()[0]["id"])

    def models(self) -> list[dict[str, Any]]:
        """The cards of the models served, at least one. Raises ClientError."""
        cards = self.call("/v1/models").get("data")
        if not cards:
            raise ClientError(f"{self.url} serves no model")
        return list(cards)

    def call(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The JSON answer of a GET, or of a POST of `body`. Raises ClientError."""
        with self._open(path, body) as response:
            return _decode(response.read())

    def stream(self, path: str, body: Mapping[str, Any]) -> Generator[dict[str, Any], None, None]:
        """The chunks of a streamed answer, as they come.

        Closing the iterator ends the request. Raises ClientError, also when the stream breaks off.
        """
        with self._open(path, {**body, "stream": True}) as response:
            try:
                yield from _events(response)
            except (OSError, HTTPException) as error:
                raise ClientError(f"the answer broke off: {_reason(error)}") from None

    def _open(self, path: str, body: Mapping[str, Any] | None) -> HTTPResponse:
        data = None if body is None else json.dumps(body).encode()
        request = Request(self.url + path, data=data, headers=self.headers)
        try:
            return self._opener.open(request, timeout=self._timeout_s)  # type: ignore[no-any-return]
        except HTTPError as error:
            with error:
                raise ClientError(refusal(error.code, error.read()), error.code) from None
        except (URLError, OSError, HTTPException) as error:
            raise ClientError(
                f"no server answers at {self.url} ({_reason(error)}). {_way_out(error)}"
            ) from None


def base(url: str) -> str:
    """The address of a server as a user types it (`host:port`, `:port`), as a URL without `/v1`.

    Raises ClientError where it is none.
    """
    near = f"127.0.0.1{url}" if url.startswith(":") else url
    full = near if "://" in near else f"http://{near}"
    parts = urlsplit(full)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ClientError(f"{url!r} is no address of a server; try http://127.0.0.1:8000")
    return full.rstrip("/").removesuffix("/v1")


def proxy_of(url: str) -> str | None:
    """The environment's proxy for a URL as `Client` uses it, for whoever asks by other means."""
    parts = urlsplit(url)
    if _near(url) or proxy_bypass(parts.netloc):
        return None
    proxy = getproxies().get(parts.scheme)
    return proxy if proxy is None or "://" in proxy else f"http://{proxy}"


def _near(url: str) -> bool:
    return urlsplit(url).hostname in LOOPBACK


def refusal(status: int, body: bytes) -> str:
    """What a refusing server said, for a person."""
    hint = ". Give the server's key with --api-key or SHOAL_API_KEY" if status == 401 else ""
    return f"the server answered {status}: {said_in(body)}{hint}"


def said_in(body: bytes) -> str:
    """The message of an error object, or what else came in its place."""
    try:
        error = json.loads(body)
        said = error.get("error", error)
        said = said.get("message", said) if isinstance(said, dict) else said
    except (ValueError, AttributeError):
        said = body.decode(errors="replace").strip()[:200]
    return str(said)


def _events(response: HTTPResponse) -> Generator[dict[str, Any], None, None]:
    for line in response:
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data == b"[DONE]":
            return
        chunk = _decode(data)
        if chunk.get("error"):
            raise ClientError(f"the answer broke off: {said_in(data)}")
        yield chunk
    raise ClientError("the answer broke off: the stream ended without [DONE]")


def _decode(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except ValueError:
        raise ClientError(f"the server does not speak JSON: {data[:100]!r}") from None
    if not isinstance(found, dict):
        raise ClientError(f"the server answered {data[:100]!r}")
    return found


def _way_out(error: Exception) -> str:
    cause = getattr(error, "reason", error)
    if isinstance(cause, SSLCertVerificationError):
        return "SSL_CERT_FILE=FILE, its own certificate or its authority's, makes it trusted"
    if isinstance(cause, SSLError):
        return "If it serves http, say http:// in --url"
    if isinstance(cause, RemoteDisconnected):
        return "If it serves https, say https:// in --url"
    return "Start one with `shoal serve`, or name another with --url"


def _reason(error: Exception) -> str:
    cause = getattr(error, "reason", error)
    if isinstance(cause, SSLCertVerificationError):
        return str(cause.verify_message)
    return str(getattr(cause, "strerror", None) or cause or type(cause).__name__)
