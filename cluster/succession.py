"""A replica of an earlier version, which makes way where its successor finds no place.

`shoal serve` sees to that itself, as long as it stays. A file that was deployed by other means has
nobody beside its replicas: what was free when it was read may have been taken since.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from ray._private import state
from ray.serve._private.common import ReplicaID

from .facts import Facts

LOOK_S = 2.0
SLACK_S = 5.0
"""How much longer than `placement_timeout` the first one waits: a `shoal serve` acts before it. The
next ones wait so long."""

_WITHOUT_PLACE = ("DEPENDENCIES_UNREADY", "PENDING_CREATION")


def without_place(app: str) -> Iterator[tuple[str, ReplicaID]]:
    """The actors of an application that Ray has yet to place, by their full names."""
    for condition in _WITHOUT_PLACE:
        for actor in state.actors(actor_state_name=condition).values():
            name = actor["Name"]
            if ReplicaID.is_full_id_str(name):
                replica = ReplicaID.from_full_id_str(name)
                if replica.deployment_id.app_name == app:
                    yield name, replica


class Succession:
    """Of the replica `own`, made of the settings that `version` stands for."""

    def __init__(self, facts: Facts, deployment: str, own: str, version: str) -> None:
        self._facts = facts
        self._deployment = deployment
        self._own = own
        self._version = version
        self._since: float | None = None

    def is_due(self) -> bool:
        """Whether it should drain now, so that a new one finds a place; call it again and again.

        One does after a bound, the first by its name, and another one not before a new one is ready
        for each that has. Raises RayError where the head does not answer.
        """
        wanted = self._facts.ask("share", self._deployment)
        if wanted is None or wanted["version"] == self._version or not self._is_awaited():
            self._since = None
            return False
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        bound_s = SLACK_S if wanted["gone"] else wanted["placement_timeout"] + SLACK_S
        if now - self._since < bound_s:
            return False
        old, new = self._ready(wanted["version"])
        if wanted["gone"] > len(new) or min(old, default=None) != self._own:
            return False
        self._facts.put("share", self._deployment, wanted | {"gone": wanted["gone"] + 1})
        return True

    def _is_awaited(self) -> bool:
        return any(
            replica.deployment_id.name == self._deployment
            for _, replica in without_place(self._facts.name)
        )

    def _ready(self, version: str) -> tuple[list[str], list[str]]:
        """The replicas of this deployment that are ready, of other versions and of `version`."""
        found: tuple[list[str], list[str]] = ([], [])
        here = self._facts.all("replica")
        of = here[self._own]["model"]
        for key, fact in here.items():
            if fact["model"] == of and fact["phase"] == "ready":
                found[fact["card"]["version"] == version].append(key)
        return found
