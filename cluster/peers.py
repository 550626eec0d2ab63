"""How the gateways of an application tell each other what they have counted.

Each asks all others over their private ports, every few seconds and whenever its own figures are
asked for. Question and answer are proved by the application's secret. What a gateway that is being
stopped knew stays behind as a fact.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import logging
import secrets
import time
from collections.abc import Mapping
from http.client import HTTPException
from typing import Any
from urllib.request import Request

import msgspec
from ray.exceptions import RayError

from .direct import direct_opener
from .facts import Facts
from .pool import Pool

PATH = "/-/figures"
LEFT = "figures"
"""The kind of facts that gateways leave behind."""
EVERY_S = 5.0
ASK_S = 1.0  # a peer that takes longer is answered for by what was known of it before
LOOK_S = 0.3
REST_S = 60.0  # of one that does not answer, at most

log = logging.getLogger(__name__)


class Peers:
    """The other gateways of the application, for the pool of the gateway `own`."""

    def __init__(self, pool: Pool, facts: Facts, secret: bytes, own: str) -> None:
        self._pool = pool
        self._facts = facts
        self._secret = secret
        self._own = own
        self._places: dict[str, str] = {}
        self._looking: asyncio.Task[None] | None = None
        self._resting: dict[str, tuple[float, float]] = {}
        pool.ask = self.ask

    async def keep_up(self) -> None:
        """Ask again and again, so that little is lost with a gateway that dies."""
        while True:
            await self.ask()
            await asyncio.sleep(EVERY_S)

    async def ask(self) -> None:
        """Take in what every other gateway knows, as far as they say so in time."""
        looking = self._looking = self._looking or asyncio.create_task(self._look())
        await asyncio.wait((looking,), timeout=LOOK_S)  # it hangs while Ray's head is away
        try:
            async with asyncio.timeout(ASK_S):
                await asyncio.gather(*(self._ask(*at) for at in self._places.items()))
        except TimeoutError:
            log.debug("not all gateways have told their figures in time")

    async def leave(self) -> None:
        """State what this gateway knows for those that stay or come."""
        try:
            async with asyncio.timeout(ASK_S):
                before = await asyncio.to_thread(self._facts.all, LEFT)
                self._learn_left(before)
                left = {"record": self._pool.record()}
                await asyncio.to_thread(self._facts.put, LEFT, self._own, left)
                for key in before:
                    await asyncio.to_thread(self._facts.remove, LEFT, key)
        except (RayError, RuntimeError, OSError) as error:
            log.warning("what this gateway has counted is lost: %s", error)

    async def _look(self) -> None:
        """Find out who there is, and what those left behind who have gone."""
        try:
            gateways = await asyncio.to_thread(self._facts.all, "gateway")
            left = await asyncio.to_thread(self._facts.all, LEFT)
        except Exception as error:  # whatever ails Ray, figures are told
            log.debug("who the other gateways are cannot be learnt now: %s", error)
            return
        finally:
            self._looking = None
        self._places = {
            key: f"http://{_bracketed(str(at['host']))}:{at['port']}{PATH}"
            for key, at in gateways.items()
            if key != self._own and "port" in at
        }
        self._resting = {key: rest for key, rest in self._resting.items() if key in self._places}
        self._learn_left(left)

    def _learn_left(self, left: Mapping[str, Mapping[str, Any]]) -> None:
        for fact in left.values():
            with contextlib.suppress(ValueError, msgspec.MsgspecError):
                self._pool.learn(base64.b64decode(fact["record"]))

    async def _ask(self, key: str, url: str) -> None:
        until, rest_s = self._resting.get(key, (0.0, 0.0))
        if time.monotonic() < until:
            return
        try:
            self._pool.learn(await asyncio.to_thread(_fetch, url, self._secret))
        except (OSError, ValueError, HTTPException, msgspec.MsgspecError) as error:
            rest_s = min(REST_S, 2 * rest_s or EVERY_S)
            self._resting[key] = time.monotonic() + rest_s, rest_s
            log.debug("gateway %s does not tell its figures: %s", key, error)
        else:
            self._resting.pop(key, None)


class Told:
    """An ASGI application before the private door's: answers gateways that prove the secret."""

    def __init__(self, app: Any, pool: Pool, secret: bytes) -> None:
        self._app = app
        self._pool = pool
        self._secret = secret

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """See ASGI."""
        if scope["type"] != "http" or scope["path"] != PATH:
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        nonce, proof = headers.get(b"x-nonce", b""), headers.get(b"x-proof", b"")
        status, body = 403, b""
        if nonce and hmac.compare_digest(proof, _proof(self._secret, b"ask", nonce)):
            status, body = 200, self._pool.record()
        shown = [
            (b"content-length", b"%d" % len(body)),
            (b"x-proof", _proof(self._secret, b"tell", nonce + body)),
        ]
        await send({"type": "http.response.start", "status": status, "headers": shown})
        await send({"type": "http.response.body", "body": body})


def _fetch(url: str, secret: bytes) -> bytes:
    """What the gateway at `url` knows. Raises OSError, ValueError."""
    nonce = secrets.token_hex(16).encode()
    headers = {"x-nonce": nonce.decode(), "x-proof": _proof(secret, b"ask", nonce).decode()}
    request = Request(url, headers=headers)
    with direct_opener().open(request, timeout=ASK_S) as answer:
        body: bytes = answer.read()
        proof = str(answer.headers.get("x-proof", ""))
    if not hmac.compare_digest(proof.encode(), _proof(secret, b"tell", nonce + body)):
        raise ValueError("a stranger answers: it does not hold this application's secret")
    return body


def _proof(secret: bytes, word: bytes, data: bytes) -> bytes:
    return hmac.new(secret, word + b"\0" + data, hashlib.sha256).hexdigest().encode()


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
