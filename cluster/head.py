"""The head of the Ray that this process has joined: whether it answers.

Most of Ray's calls wait for it, deaf to signals, till it is back or Ray gives up and ends the
process. Those here have a bound.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ray._private import worker
from ray.exceptions import RayError

ASK_S = 2.0

_ray: Any = worker.global_worker


def ask(key: bytes, namespace: bytes) -> bytes | None:
    """What is kept there under a key. Raises RayError where it does not answer within ASK_S."""
    value: bytes | None = _ray.gcs_client.internal_kv_get(key, namespace, timeout=ASK_S)
    return value


def address() -> str:
    """Where it is: host:port."""
    return str(_ray.gcs_client.address)


def answers() -> bool:
    """Whether it does."""
    try:
        ask(b"shoal", b"shoal")
    except RayError:
        return False
    return True


class Absence:
    """Tells once that the head has gone, by `warn`, and once that it is back, by `note`."""

    def __init__(self, warn: Callable[[str], None], note: Callable[[str], None]) -> None:
        self._warn = warn
        self._note = note
        self._unheard = 0
        self._heard_at = time.monotonic()

    def look(self, answered: bool) -> None:
        """Enter whether it has answered; of a busy one a second silence in a row is asked."""
        now = time.monotonic()
        if answered:
            if self._unheard > 1:
                self._note(f"the head of Ray answers again, after {now - self._heard_at:.0f} s")
            self._unheard, self._heard_at = 0, now
            return
        self._unheard += 1
        if self._unheard == 2:
            self._warn(
                f"the head of Ray at {address()} does not answer. What runs goes on "
                f"and takes requests; nothing is started or replaced until it is back. Nodes wait "
                f"for it for RAY_gcs_rpc_server_reconnect_timeout_s (60 s where that was not set), "
                f"then Ray ends"
            )
