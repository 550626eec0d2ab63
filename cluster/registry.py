"""What Ray knows of an application's processes: its facts, which actors live, which nodes drain."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ray
from ray._private import state

from .census import Absent, Entries, Process
from .drain import drain
from .facts import Facts

LOOK_S = 1.0
"""How old an answer may be, and how long a new one may take: Ray's head may be away."""
DEAD_SHOWN_S = 60.0

log = logging.getLogger(__name__)


class FactRegistry:
    """The Registry of an application on Ray; used on the gateway's event loop.

    `ended` tells why the link to a replica was lost: its state, or None.
    """

    def __init__(self, facts: Facts, ended: Callable[[str], str | None]) -> None:
        self._facts = facts
        self._ended = ended
        self._entries = Entries()
        self._looked = -LOOK_S
        self._looking: asyncio.Task[None] | None = None
        self._dead_since: dict[str, float] = {}

    async def entries(self) -> Entries:
        """See Registry; what was last known where Ray does not answer."""
        if self._looking is None and time.monotonic() - self._looked > LOOK_S:
            self._looking = asyncio.create_task(self._look())
        if self._looking is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(self._looking), LOOK_S)
        return replace(self._entries, replicas=tuple(map(self._now, self._entries.replicas)))

    async def drain(self, node: str) -> dict[str, Any]:
        """See Registry."""
        return await asyncio.to_thread(drain, node)

    def _now(self, replica: Absent) -> Absent:
        """With the state that the last link to it had, where Ray holds it for alive or is not to be
        asked.
        """
        ended = self._ended(replica.replica) if replica.state == "starting" else None
        return replace(replica, state=ended) if ended else replica

    async def _look(self) -> None:
        try:
            self._entries = await asyncio.to_thread(self._read)
        except Exception as error:  # whatever ails Ray, what is linked is told
            log.debug("what Ray knows cannot be learnt now: %s", error)
        finally:
            self._looked, self._looking = time.monotonic(), None

    def _read(self) -> Entries:
        """Runs on a thread; asks Ray."""
        replicas = []
        for replica, fact in self._facts.all("replica").items():
            if "actor" not in fact:
                continue
            found = self._state(replica, fact)
            if found is None:
                self._facts.remove("replica", replica)
                continue
            process = Process(str(fact["node"]), int(fact["pid"]))
            replicas.append(
                Absent(replica=replica, model=str(fact["model"]), process=process, state=found)
            )
        gateways = {
            name: Process(str(fact["host"]), int(fact["pid"]))
            for name, fact in self._facts.all("gateway").items()
            if "host" in fact and not _is_dead(fact)
        }
        return Entries(
            replicas=replicas,
            gateways=gateways,
            draining=draining_nodes(),
            scaling=self._facts.all("scaling"),
        )

    def _state(self, replica: str, fact: dict[str, Any]) -> str | None:
        """How a replica without a link is; None of one that has long been dead."""
        if not _is_dead(fact):
            return "starting"
        since = self._dead_since.setdefault(replica, time.monotonic())
        return "dead" if time.monotonic() - since < DEAD_SHOWN_S else None


def _is_dead(fact: dict[str, Any]) -> bool:
    """Whether Ray holds the actor that stated a fact of itself for dead."""
    actor = (state.actors(fact["actor"]) if "actor" in fact else None) or {}
    return bool(actor.get("State") == "DEAD")


def draining_nodes() -> frozenset[str]:
    """The addresses of the nodes that are being drained."""
    ids = state.state.get_draining_nodes()
    return frozenset(
        str(node["NodeManagerAddress"]) for node in ray.nodes() if node["NodeID"] in ids
    )
