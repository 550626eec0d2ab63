"""All processes of an application and how they are, as one gateway can tell: `GET /cluster`.

What runs is known by the links to replicas, whose beats carry their ranks and how much each
gateway has there. What is starting or gone, and where other gateways are, is the matter of a
`Registry`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from ..engine.request import RankState
from .link import Link, Router

HERE = "127.0.0.1"


class Process(NamedTuple):
    """A process somewhere."""

    node: str
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Absent:
    """A replica to which there is no link: why, by its state, and where it was last."""

    replica: str
    model: str
    process: Process
    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Entries:
    """What is on record: replicas by their state, gateways by their names, nodes that are being
    drained, what was decided for each model that scales (see `scaling_policy`).
    """

    replicas: Sequence[Absent] = ()
    gateways: Mapping[str, Process] = field(default_factory=dict)
    draining: frozenset[str] = frozenset()
    scaling: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


class Registry(Protocol):
    """Who has been there beside those that a gateway is linked to."""

    async def entries(self) -> Entries:
        """What is on record, within a bounded time."""
        ...

    async def drain(self, node: str) -> dict[str, Any]:
        """Empty a node and let nothing new start there; what will be done. Raises ShoalError."""
        ...


class Census:
    """The view of the gateway `name`; alone it has no registry."""

    def __init__(
        self, router: Router, name: str = "gateway", registry: Registry | None = None
    ) -> None:
        self.registry = registry
        self._router = router
        self._name = name

    async def overview(self, own_streams: int) -> dict[str, Any]:
        """All replicas and gateways; this one has `own_streams`."""
        known = await self.registry.entries() if self.registry is not None else Entries()
        links = self._router.known()
        linked = {link.replica for link in links}
        replicas = [_row(link, known.draining) for link in links]
        replicas += [_absent_row(r) for r in known.replicas if r.replica not in linked]
        streams = {**self._others(links), self._name: own_streams}
        gateways = {self._name: Process(HERE, os.getpid()), **known.gateways}
        scaling = [_scaling_row(model, fact) for model, fact in sorted(known.scaling.items())]
        told: dict[str, Any] = {"scaling": scaling} if scaling else {}
        return {
            "replicas": sorted(replicas, key=lambda row: (row["model"], row["id"])),
            "gateways": [
                {"node": at.node, "pid": at.pid, "streams": streams.get(name, 0)}
                for name, at in sorted(gateways.items())
            ],
            **told,
        }

    def _others(self, links: Sequence[Link]) -> dict[str, int]:
        """Sequences of each gateway, as the replicas last told."""
        found: dict[str, int] = {}
        for link in links:
            for gateway, num_live in link.streams.items():
                found[gateway] = found.get(gateway, 0) + num_live
        return found


def _row(link: Link, draining: frozenset[str]) -> dict[str, Any]:
    load = link.load
    drains = link.state == "ready" and link.node in draining
    return {
        "id": link.replica,
        "model": link.card.names[0],
        "node": link.node,
        "pid": link.pid,
        "state": "draining" if drains else link.state,
        "running": load.running,
        "waiting": load.waiting,
        "kv_usage": round(load.kv_usage, 4),
        "ranks": [_rank_row(rank, link.node) for rank in load.ranks],
    }


def _scaling_row(model: str, fact: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "model": model,
        "replicas": fact["target"],
        "min_replicas": fact["min"],
        "max_replicas": fact["max"],
        "sustains": fact["sustains"],
        "decisions": fact["decisions"],
    }


def _rank_row(rank: RankState, node: str) -> dict[str, Any]:
    last_step_s = rank.last_step_s
    return {
        "rank": rank.rank,
        "node": rank.node or node,
        "pid": rank.pid,
        "device": rank.device,
        "last_step_s": None if last_step_s is None else round(last_step_s, 3),
    }


def _absent_row(replica: Absent) -> dict[str, Any]:
    return {
        "id": replica.replica,
        "model": replica.model,
        "node": replica.process.node,
        "pid": replica.process.pid,
        "state": replica.state,
        "running": 0,
        "waiting": 0,
        "kv_usage": 0.0,
        "ranks": [],
    }
