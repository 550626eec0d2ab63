"""Emptying a node: nothing new starts there, and what runs there moves elsewhere.

Ray keeps new processes off a node that is being drained, and Serve starts a replacement elsewhere
for each replica there before it stops it; a replica that is stopped lets its streams move. Once the
node is empty, Ray on it ends by itself; it joins again when Ray is started there anew.
"""

from __future__ import annotations

from typing import Any

import ray
from ray._private import worker
from ray.core.generated import autoscaler_pb2

from ..engine.errors import EngineLost, InvalidRequest
from . import head

_HEAD = "node:__internal_head__"
_protocol: Any = autoscaler_pb2
_ray: Any = worker.global_worker
_REASON = _protocol.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")


def drain(name: str) -> dict[str, Any]:
    """Begin to empty the node of this address, host name or id; returns at once.

    Raises InvalidRequest where there is no such node, or where it cannot be done; EngineLost
    while the head does not answer.
    """
    if not head.answers():
        raise EngineLost("the head of Ray does not answer: no node is drained until it is back")
    alive = [node for node in ray.nodes() if node["Alive"]]
    node = _find(name, alive)
    address = str(node["NodeManagerAddress"])
    if _HEAD in node["Resources"]:
        raise InvalidRequest(
            f"{address} is the head of the Ray cluster, which cannot be drained: stop the server "
            f"(`shoal stop`), or move the head",
            "node",
        )
    accepted, why = _ray.gcs_client.drain_node(node["NodeID"], _REASON, "shoal drain", 0)
    if not accepted:
        raise InvalidRequest(f"Ray does not drain {address}: {why}", "node")
    return {"node": address, "status": "draining"}


def _find(name: str, alive: list[dict[str, Any]]) -> dict[str, Any]:
    found = [node for node in alive if name in _names(node)]
    if not found and len(name) >= 6:
        found = [node for node in alive if str(node["NodeID"]).startswith(name)]
    if len(found) == 1:
        return found[0]
    there = ", ".join(f"{n['NodeManagerAddress']} ({n['NodeManagerHostname']})" for n in alive)
    what = "several nodes are" if found else "no node is"
    raise InvalidRequest(f"{what} called {name!r}; there are {there}", "node")


def _names(node: dict[str, Any]) -> tuple[str, ...]:
    host = str(node["NodeManagerHostname"])
    return str(node["NodeManagerAddress"]), host, host.partition(".")[0], str(node["NodeID"])
