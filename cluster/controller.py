"""Serve's controller on a Ray that is joined: whether it answers.

Calls to it have no bound of their own: Ray keeps them until it has started the controller anew, and
that can be on the head's node alone, once there is one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import ray
from ray.exceptions import RayError
from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

from ..engine.errors import EngineLost
from . import head

ASK_S = 5.0
BOUND_S = 180.0
PAUSE_S = 0.5


def wait_for(stop: threading.Event, note: Callable[[str], None], bound_s: float = BOUND_S) -> None:
    """Wait until it answers, or `stop` is set; at once where no Serve runs. `note` is told that it
    does not. Raises EngineLost after `bound_s`.
    """
    until, told = time.monotonic() + bound_s, False
    while not answers() and not stop.wait(PAUSE_S):
        if not told:
            note(f"Ray Serve's controller does not answer; it is asked again for {bound_s:g} s")
            told = True
        if time.monotonic() > until:
            raise EngineLost(
                f"Ray Serve's controller has not answered for {bound_s:g} s. It runs on the head's "
                f"node: `ray status` says whether that is there; `serve shutdown` on it ends a "
                f"Serve that does not come back, with all applications"
            )


def answers() -> bool:
    """Whether it does within a while; True where none runs, False while the head does not."""
    if not head.answers():
        return False
    try:
        controller = ray.get_actor(SERVE_CONTROLLER_NAME, SERVE_NAMESPACE)
    except ValueError:
        return True
    try:
        ray.get(controller.check_alive.remote(), timeout=ASK_S)
    except RayError:  # no answer in time is one, too
        return False
    return True
