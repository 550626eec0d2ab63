"""The heartbeat.

Plan, submit, collect, commit. The same for plain, overlapped and pipelined execution.
"""

from __future__ import annotations

import time
from collections import deque

from .core.scheduler import Scheduler
from .core.step_cost import SAMPLES, StepCosts
from .executor import Executor
from .plan import Plan
from .request import FinishReason, Request, SamplingParams, Update

REHEARSED = Request(
    id="rehearsal",
    prompt=(0,),
    params=SamplingParams(max_tokens=SAMPLES + 1, temperature=0.0, seed=0, ignore_eos=True),
)


class Loop:
    """Keeps up to `executor.depth` plans under way; `num_steps` have been done, at `costs`."""

    def __init__(self, scheduler: Scheduler, executor: Executor) -> None:
        self.scheduler = scheduler
        self.executor = executor
        self.num_steps = 0
        self.costs = StepCosts()
        self._under_way: deque[Plan] = deque()
        self._collected: float | None = None
        """When the last result came, while there has been work ever since."""

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
        while len(self._under_way) < self.executor.depth and (plan := self.scheduler.schedule()):
            self.executor.submit(plan)
            self._under_way.append(plan)
        if not self._under_way:
            return []
        result = self.executor.collect()
        self.num_steps += 1
        now = time.monotonic()
        self._count_cost(self._under_way.popleft(), now)
        self.scheduler.tell_time(now)
        updates = self.scheduler.commit(result)
        self._collected = now if self.unfinished else None
        return updates

    def rehearse(self) -> None:
        """Make a few tokens for nobody, so that the cost of a lone stream is known before any
        other. Raises WorkerLost.
        """
        self.add(REHEARSED)
        while self.unfinished:
            self.step()
        self.scheduler.count_anew()

    def _count_cost(self, plan: Plan, now: float) -> None:
        """Enter what a plan that is done took, if it decoded only and the loop did not rest."""
        rows = plan.rows
        if self._collected is not None and rows and all(row.num_tokens == 1 for row in rows):
            streams = max(self.scheduler.num_running, len(rows))
            self.costs.enter(streams, (now - self._collected) * streams / len(rows))
