"""Small facts about one application, kept in Ray's GCS, where each of its processes finds them.

secret             what its processes prove themselves with
replica/<id>       how far a replica has come: {"model": ..., "phase": ...}, and where it runs
card/<model>       what a replica last stated of its model: a ModelCard
scaling/<model>    what the scaling policy last decided; see `scaling_policy`
share/<deployment> what a replica has of its machine and of which settings, its version and names,
                   and how many earlier ones have gone for want of a place; see succession.py
driver/owner       which `shoal serve` the application belongs to: {"id": ...}
loading/<id>       how much of its weights it has read: {"done": bytes, "total": bytes}
gateway/<id>       a gateway's private address and actor: {"host", "port", "pid", "actor"}
figures/<id>       what a gateway that was stopped had counted; see peers.py
failure/<id>       why a replica or gateway did not start
"""

from __future__ import annotations

import math
import secrets
import time
from typing import Any

import msgspec
import ray
from ray.experimental import internal_kv

from ..engine import errors
from ..engine.errors import EngineLost, ShoalError
from . import head

_NAMESPACE = b"shoal"
LOADING_S = 0.2
"""How often a replica tells how much it has read."""


def node_address() -> str:
    """The address by which Ray knows this node: 127.0.0.1 in a Ray that is this machine's alone."""
    here = ray.get_runtime_context().get_node_id()
    nodes = ray.nodes()
    return next(str(n["NodeManagerAddress"]) for n in nodes if n["NodeID"] == here)


class Facts:
    """The facts of the application `name`; the process must have joined Ray."""

    def __init__(self, name: str) -> None:
        self.name = name

    def secret(self) -> bytes:
        """The application's secret, made by whichever process asks first."""
        internal_kv._internal_kv_put(
            self._key("secret"), secrets.token_bytes(32), overwrite=False, namespace=_NAMESPACE
        )
        secret: bytes = internal_kv._internal_kv_get(self._key("secret"), namespace=_NAMESPACE)
        return secret

    def put(self, kind: str, key: str, fact: object) -> None:
        """State or replace a fact: anything that msgspec encodes."""
        internal_kv._internal_kv_put(
            self._key(f"{kind}/{key}"), msgspec.json.encode(fact), namespace=_NAMESPACE
        )

    def all(self, kind: str) -> dict[str, dict[str, Any]]:
        """The facts of a kind by their keys."""
        prefix = self._key(f"{kind}/")
        found = {}
        for key in internal_kv._internal_kv_list(prefix, namespace=_NAMESPACE):
            value = internal_kv._internal_kv_get(key, namespace=_NAMESPACE)
            if value is not None:
                found[key.removeprefix(prefix).decode()] = msgspec.json.decode(value)
        return found

    def ask(self, kind: str, key: str) -> dict[str, Any] | None:
        """A fact, if there is one. Raises RayError where the head does not answer in time."""
        value = head.ask(self._key(f"{kind}/{key}"), _NAMESPACE)
        return None if value is None else msgspec.json.decode(value)

    def put_failure(self, key: str, error: ShoalError, model: str | None = None) -> None:
        """State why `key`, a replica of `model`, did not start."""
        message = {"error": type(error).__name__, "message": error.message, "model": model}
        self.put("failure", key, message)

    def failure(self, *, named: bool = False) -> ShoalError | None:
        """Why something of the application did not start; `named`: of which model it is."""
        for fact in self.all("failure").values():
            kind = getattr(errors, str(fact["error"]), EngineLost)
            of = f"{fact['model']}: " if named and fact["model"] else ""
            return kind(of + str(fact["message"]))
        return None

    def remove(self, kind: str, key: str) -> None:
        """Take a fact back."""
        internal_kv._internal_kv_del(self._key(f"{kind}/{key}"), namespace=_NAMESPACE)

    def clear(self) -> None:
        """Forget the application."""
        internal_kv._internal_kv_del(self._key(""), del_by_prefix=True, namespace=_NAMESPACE)

    def _key(self, rest: str) -> bytes:
        return f"{self.name}/{rest}".encode()


class Loading:
    """Tells how much of a replica's weights is read; call it with (bytes done, bytes in all)."""

    def __init__(self, facts: Facts, replica: str) -> None:
        self._facts = facts
        self._replica = replica
        self._told = -math.inf

    def __call__(self, done_bytes: int, total_bytes: int) -> None:
        """State it, unless that was done a moment ago."""
        now = time.monotonic()
        if done_bytes < total_bytes and now - self._told < LOADING_S:
            return
        self._told = now
        self._facts.put("loading", self._replica, {"done": done_bytes, "total": total_bytes})


def weights_read(facts: Facts) -> tuple[int, int]:
    """Bytes read and bytes in all, of the replicas that have begun."""
    found = facts.all("loading").values()
    return sum(int(f["done"]) for f in found), sum(int(f["total"]) for f in found)
