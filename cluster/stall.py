"""Whether an engine that has work gets on with it, and what its process is doing if it does not."""

from __future__ import annotations

import sys
import threading
import time
import traceback

from ..engine.request import Load, RankState

RANKS_FIRST_S = 2.0
"""How long a replica of several ranks waits for one of them to say first that it is stuck."""


class StallWatch:
    """Looked at again and again with what an engine says of itself. `timeout_s` 0: never stalled.

    Progress is any word of it: a step done, a layer begun by a rank. So a long prompt is no stall.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._ticks = -1
        self._since = time.monotonic()

    def look(self, load: Load) -> str | None:
        """Who is to blame, once it has had work and made no progress for too long."""
        now = time.monotonic()
        if load.ticks != self._ticks or not load.running + load.waiting:
            self._ticks, self._since = load.ticks, now
        still_s = now - self._since
        patience_s = self._timeout_s + (RANKS_FIRST_S if len(load.ranks) > 1 else 0.0)
        if not self._timeout_s or still_s <= patience_s:
            return None
        done = "; ".join(map(_words, load.ranks)) or "its engine"
        waits = f"{load.running} running and {load.waiting} waiting"
        return f"no progress for {still_s:.1f} s with {waits} requests: {done}"


def _words(rank: RankState) -> str:
    return f"rank {rank.rank} (pid {rank.pid}) stopped at step {rank.step}, {rank.operation}"


def stacks() -> str:
    """What every thread of this process is doing."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    parts: list[str] = []
    for ident, frame in sys._current_frames().items():
        parts.append(f"thread {names.get(ident, ident)}:\n")
        parts += traceback.format_stack(frame)
    return "".join(parts)
