"""How a gateway ends that is stopped.

removed      the application goes: 503 for what comes, and `shutdown_timeout` for what runs
told to end  by SIGTERM: it goes on as before till Serve has another one here, then hands over
handed over  the application stays, and another gateway of this node listens on the same port: new
             connections are its own, those that there are end with their next answer, and what
             runs has HAND_OVER_S
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable
from typing import Any

import uvicorn
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from . import rollout
from .facts import Facts
from .turnstile import Turnstile
from .web import Server

HAND_OVER_S = 600.0
IDLE_S = 2.0
"""How long a connection without a request stays open, in case one is on its way."""

LOOK_S = 0.5
_UNKNOWN = (RayError, RayServeException, RuntimeError, ConnectionError)


class DoorServer(Server):
    """Says when it listens."""

    def __init__(self, config: uvicorn.Config, on_started: Callable[[], Any]) -> None:
        super().__init__(config)
        self._on_started = on_started

    async def startup(self, sockets: list[Any] | None = None) -> None:
        """See uvicorn."""
        await super().startup(sockets)
        self._on_started()

    async def take_no_more(self) -> None:
        """Listen no more; each connection ends with its next answer, an idle one after IDLE_S."""
        self.config.encoded_headers.append((b"connection", b"close"))
        await asyncio.sleep(0)  # who has connected is let in
        for server in self.servers:
            server.close()
        await asyncio.sleep(IDLE_S)
        for connection in tuple(self.server_state.connections):
            connection.shutdown()


def forget_the_dead(facts: Facts, host: str) -> None:
    """Strike off gateways of this node whose processes have ended without a word."""
    for key, at in facts.all("gateway").items():
        if at.get("host") == host and not _lives(int(at["pid"])):
            facts.remove("gateway", key)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def await_another(facts: Facts, host: str, own: str, timeout_s: float) -> None:
    """Wait till another gateway than `own` listens on `host`, or the application goes; blocks."""
    until = time.monotonic() + timeout_s
    while time.monotonic() < until and not _is_removed(facts):
        with contextlib.suppress(*_UNKNOWN):
            if any(key != own for key in _beside(facts, host)):
                return
        time.sleep(LOOK_S)


async def hand_over(
    facts: Facts,
    host: str,
    door: DoorServer,
    turnstile: Turnstile,
    serve_only: Callable[[dict[str, str]], None],
) -> bool:
    """Do so where there is another gateway on `host`, and wait for those inside; whether it was.

    Meanwhile `serve_only` is told the models that the application has now: versions by names.
    """
    if not await asyncio.to_thread(_may_hand_over, facts, host):
        return False
    await door.take_no_more()
    until = time.monotonic() + HAND_OVER_S
    while turnstile.num_inside and time.monotonic() < until:
        await asyncio.sleep(LOOK_S)
        if await asyncio.to_thread(_is_removed, facts):
            break
        if served := await asyncio.to_thread(_served, facts):
            serve_only(served)
    return True


def _may_hand_over(facts: Facts, host: str) -> bool:
    """Of the gateways on record this one is none any more."""
    try:
        return bool(_beside(facts, host)) and rollout.runs(facts.name)
    except _UNKNOWN:
        return False


def _beside(facts: Facts, host: str) -> list[str]:
    """The gateways that listen on `host`, this node."""
    forget_the_dead(facts, host)
    return [key for key, at in facts.all("gateway").items() if at.get("host") == host]


def _served(facts: Facts) -> dict[str, str]:
    """Versions of the application's models, by all their names; none while nobody can tell."""
    try:
        shares = facts.all("share").values()
    except _UNKNOWN:
        return {}
    return {name: fact["version"] for fact in shares for name in fact["names"]}


def _is_removed(facts: Facts) -> bool:
    """Whether the application goes; while nobody can tell, it stays."""
    try:
        return not rollout.runs(facts.name)
    except _UNKNOWN:
        return False
