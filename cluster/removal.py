"""Taking an application off its Ray.

Serve waits for each of its processes as long as that may take to end what it does, also for those
that have not found a place yet, which do nothing and do not hear it. These are ended here.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve._private.constants import SERVE_NAMESPACE
from ray.serve.exceptions import RayServeException

from ..engine.errors import EngineLost, ShoalError
from . import controller, head
from .facts import Facts
from .launch import joined_ray
from .succession import without_place

LOOK_S = 0.1
BACK_S = 15.0
"""How long a head, or a controller, that is away is waited for."""


def await_control(app: str, note: Callable[[str], None]) -> bool:
    """Wait till the head and Serve's controller answer, which alone can take an application off;
    whether they do within BACK_S. `note` is told what is missing, and then what stays.
    """
    until, told = time.monotonic() + BACK_S, False
    while not controller.answers():
        who = "Ray Serve's controller" if head.answers() else "the head of Ray"
        if time.monotonic() > until:
            note(
                f"{who} does not answer: nothing is taken off it, {app} stays with its processes. "
                f"Once it is back: shoal stop {app} --ray-address {head.address()}"
            )
            return False
        if not told:
            note(f"{who} does not answer; {BACK_S:g} s are given it to be back")
            told = True
        time.sleep(LOOK_S)
    return True


def take_off(address: str, app: str, timeout_s: float) -> None:
    """Do it for whoever served it on the Ray at `address`, and end Serve where nothing else is on
    it. Raises ConfigError, EngineLost, and ShoalError where it is not there or does not go.
    """
    with joined_ray(address):
        if not controller.answers():
            raise EngineLost(f"Ray Serve's controller on the Ray at {address} does not answer")
        there = serve.status().applications
        if app not in there:
            shown = ", ".join(there) or "none"
            raise ShoalError(f"the Ray at {address} has no application {app}; it has: {shown}")
        remove(app, timeout_s)
        if app in serve.status().applications:
            raise ShoalError(f"{app} is still on the Ray at {address} after {timeout_s:g} s")
        Facts(app).clear()
        end_serve()


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


def end_serve() -> None:
    """End Serve where nobody has a use for it: without applications, and without proxies, which
    shoal's own never has.
    """
    with contextlib.suppress(RayError, RayServeException):
        left = serve.status()
        if not left.applications and not left.proxies:
            serve.shutdown()


def _end_pending(app: str) -> None:
    """End the actors of an application that Ray has yet to place."""
    for name, _ in without_place(app):
        with contextlib.suppress(ValueError):  # it has gone meanwhile
            ray.kill(ray.get_actor(name, SERVE_NAMESPACE))
