"""Small facts about one application, kept in Ray's GCS, where each of its processes finds them.

secret             what its processes prove themselves with
replica/<id>       how far a replica has come: {"model": ..., "phase": ...}
gateway/<id>       a gateway's private address: {"host": ..., "port": ..., "pid": ...}
failure/<id>       why a replica or gateway did not start
"""

from __future__ import annotations

import secrets

import msgspec
import ray
from ray.experimental import internal_kv

from ..engine import errors
from ..engine.errors import EngineLost, ShoalError

_NAMESPACE = b"shoal"


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

    def all(self, kind: str) -> dict[str, dict[str, object]]:
        """The facts of a kind by their keys."""
        prefix = self._key(f"{kind}/")
        found = {}
        for key in internal_kv._internal_kv_list(prefix, namespace=_NAMESPACE):
            value = internal_kv._internal_kv_get(key, namespace=_NAMESPACE)
            if value is not None:
                found[key.removeprefix(prefix).decode()] = msgspec.json.decode(value)
        return found

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
