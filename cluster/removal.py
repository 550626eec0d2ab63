"""Taking an application off its Ray.

Serve waits for each of its processes as long as that may take to end what it does, also for those
that have not found a place yet, which do nothing and do not hear it. These are ended here.
"""

from __future__ import annotations

import contextlib
import time

import ray
from ray import serve
from ray._private import state
from ray.exceptions import RayError
from ray.serve._private.common import ReplicaID
from ray.serve._private.constants import SERVE_NAMESPACE
from ray.serve.exceptions import RayServeException

LOOK_S = 0.1
_WITHOUT_PLACE = ("DEPENDENCIES_UNREADY", "PENDING_CREATION")


def remove(app: str, timeout_s: float) -> None:
    """Let its gateways and replicas finish what runs, and wait until they are gone, or for
    `timeout_s`. What fails of it, where Ray is going, too, is let be.
    """
    until = time.monotonic() + timeout_s
    with contextlib.suppress(RayError, RayServeException):
        serve.delete(app, _blocking=False)
        while app in serve.status().applications and time.monotonic() < until:
            _end_pending(app)
            time.sleep(LOOK_S)


def _end_pending(app: str) -> None:
    """End the actors of an application that Ray has yet to place."""
    for condition in _WITHOUT_PLACE:
        for actor in state.actors(actor_state_name=condition).values():
            name = actor["Name"]
            if ReplicaID.is_full_id_str(name) and _app_of(name) == app:
                with contextlib.suppress(ValueError):  # it has gone meanwhile
                    ray.kill(ray.get_actor(name, SERVE_NAMESPACE))


def _app_of(name: str) -> str:
    app: str = ReplicaID.from_full_id_str(name).deployment_id.app_name
    return app
