"""A changed configuration of an application that runs: who it belongs to, and when it is through.

The `shoal serve` that was started last owns the application; one before it leaves it alone and
ends. Serve replaces what has another version: one new replica first where there is room, otherwise,
and where the new one finds no place within a bound, an old one drains first.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable
from enum import Enum

from ray import serve
from ray.exceptions import RayError
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview

from .facts import Facts

_KIND, _KEY = "driver", "owner"


def runs(app: str) -> bool:
    """Whether an application of this name is there and not being removed."""
    overview = serve.status().applications.get(app)
    return overview is not None and overview.status is not ApplicationStatus.DELETING


def is_through(overview: ApplicationStatusOverview) -> bool:
    """Whether all that an application should have runs; gateways before these may still end."""
    if overview.status is ApplicationStatus.RUNNING:
        return True
    rest = {name: d for name, d in overview.deployments.items() if d.status != "HEALTHY"}
    return (
        overview.status is ApplicationStatus.DEPLOYING
        and rest.keys() == {"Gateway"}
        and rest["Gateway"].replica_states.keys() == {"RUNNING", "STOPPING"}
    )


class Owned(Enum):
    """Whose an application is; nobody's once it was taken off."""

    BY_US = "us"
    BY_ANOTHER = "another"
    BY_NOBODY = "nobody"


class Owner:
    """This process as the owner of an application, from `take` until another one takes it, or it is
    taken off its Ray.
    """

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._id = secrets.token_hex(8)
        self._has_taken = False

    def take(self) -> None:
        """Own it from now on; forget what kept an earlier configuration from starting."""
        self._facts.put(_KIND, _KEY, {"id": self._id})
        self._has_taken = True
        for key in self._facts.all("failure"):
            self._facts.remove("failure", key)

    def look(self) -> Owned | None:
        """Whose it is; None while the head does not answer."""
        with contextlib.suppress(RayError, RuntimeError, ConnectionError):
            owner = self._facts.ask(_KIND, _KEY)
            if owner is None:
                return Owned.BY_NOBODY if self._has_taken else Owned.BY_US
            return Owned.BY_US if owner["id"] == self._id else Owned.BY_ANOTHER
        return None


class Surge:
    """Watches that the first new replica of a rollout finds a place; `give_way` is called once if
    it has none after `bound_s`.
    """

    def __init__(self, facts: Facts, bound_s: float, give_way: Callable[[], None]) -> None:
        self._facts = facts
        self._before = facts.all("replica").keys()
        self._until = time.monotonic() + bound_s
        self._give_way: Callable[[], None] | None = give_way

    def look(self) -> None:
        """Call it again and again while the rollout goes on."""
        if self._give_way is None or time.monotonic() < self._until:
            return
        give_way, self._give_way = self._give_way, None
        if not self._facts.all("replica").keys() - self._before:
            give_way()
