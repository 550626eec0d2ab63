"""The heartbeat.

Plan, submit, collect, commit. The same for plain, overlapped and pipelined execution.
"""

from __future__ import annotations

import time

from .core.scheduler import Scheduler
from .executor import Executor
from .request import FinishReason, Request, Update


class Loop:
    """Keeps up to `executor.depth` plans under way; `num_steps` have been done."""

    def __init__(self, scheduler: Scheduler, executor: Executor) -> None:
        self.scheduler = scheduler
        self.executor = executor
        self.num_steps = 0
        self._under_way = 0

    @property
    def unfinished(self) -> bool:
        """Whether another step would do anything."""
        return self.scheduler.unfinished

    def add(self, request: Request) -> None:
        """Take on a request that the door has checked."""
        self.scheduler.tell_time(time.monotonic())
        self.scheduler.add(request)

    def abort(
        self,
        request_id: str,
        sibling: int | None = None,
        reason: FinishReason = FinishReason.ABORT,
    ) -> None:
        """Drop a request, or one of its siblings; it counts as ended for `reason`."""
        self.scheduler.abort(request_id, sibling, reason)

    def step(self) -> list[Update]:
        """Fill the road ahead, then take in the oldest result.

        What came of it. Raises WorkerLost.
        """
        self.scheduler.tell_time(time.monotonic())
        while self._under_way < self.executor.depth and (plan := self.scheduler.schedule()):
            self.executor.submit(plan)
            self._under_way += 1
        if not self._under_way:
            return []
        self._under_way -= 1
        result = self.executor.collect()
        self.num_steps += 1
        self.scheduler.tell_time(time.monotonic())
        return self.scheduler.commit(result)
