"""Whether an engine that has work gets on with it, and what its process is doing if it does not."""

from __future__ import annotations

import sys
import threading
import time
import traceback

from ..engine.request import Load, RankState

RANKS_FIRST_S = 2.0
"""How long a replica of several ranks waits for one of them to say first that it is stuck."""


HELD_UP_S = 1.0
TIMES_EXPECTED = 20
"""How much longer than expected a silence may be before it is a stall."""


def patience_s(timeout_s: float, expected_s: float) -> float:
    """How long to wait for a word of progress: `--stall-timeout`, or longer where long ones are
    usual.
    """
    return max(timeout_s, TIMES_EXPECTED * expected_s)


class Stillness:
    """For how long something has not moved, in time in which this process could see it move.

    A process that is stopped, or has no turn on a busy machine, sees nothing: of the time between
    two looks HELD_UP_S counts at most.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._looked = time.monotonic()

    def look(self, moved: bool) -> float:
        """The seconds up to now."""
        now = time.monotonic()
        passed, self._looked = min(now - self._looked, HELD_UP_S), now
        self.seconds = 0.0 if moved else self.seconds + passed
        return self.seconds


class StallWatch:
    """Looked at twice a second or more, with what an engine says of itself. `timeout_s` 0: never
    stalled.

    Progress is any word of it: a step done, a layer begun by a rank. So a long prompt is no stall.
    Where words are few, as while a recorded step is replayed, those that were measured say how far
    apart they are.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._ticks = -1
        self._still = Stillness()

    def look(self, load: Load) -> str | None:
        """Who is to blame, once it has had work and made no progress for too long."""
        moved = load.ticks != self._ticks or not load.running + load.waiting
        still_s, self._ticks = self._still.look(moved), load.ticks
        expected_s = max((rank.expected_s for rank in load.ranks), default=0.0)
        bound_s = patience_s(self._timeout_s, expected_s)
        bound_s += RANKS_FIRST_S if len(load.ranks) > 1 else 0.0
        if not self._timeout_s or still_s <= bound_s:
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
