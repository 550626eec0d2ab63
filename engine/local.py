"""The executor of an engine of one rank, which computes in this process."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor as Lane
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

from .config import EngineConfig
from .errors import WorkerLost
from .executor import Capacity
from .plan import Plan, Result
from .request import RankState
from .worker.machine import let_threads_sleep


class Pending(Protocol):
    """A plan under way; a `concurrent.futures.Future` is one."""

    def result(self) -> Result:
        """Wait for it."""
        ...


class Rank(Protocol):
    """One rank: what an executor asks of `worker.worker.Worker`."""

    def overlaps(self, config: EngineConfig) -> bool:
        """Whether it would compute on a device that does so by itself. Raises ConfigError."""
        ...

    def start(self, config: EngineConfig) -> Capacity:
        """Load and size. Raises ConfigError, LoadError."""
        ...

    def run(self, plan: Plan) -> Result:
        """Compute one plan."""
        ...

    def launch(self, plan: Plan) -> Pending:
        """Have a device that computes by itself compute one plan."""
        ...

    def call(self, method: str, *args: object) -> object:
        """Run a control method."""
        ...

    def state(self) -> RankState:
        """What it does; for any thread."""
        ...

    def close(self) -> None:
        """Free everything."""
        ...


class LocalExecutor:
    """Runs plans on one rank in this process.

    Plain (depth 1), a plan is computed inside `submit`, on the caller's thread. With
    `async_scheduling` (depth 2) a thread of its own computes while the host plans the next step. A
    device that computes by itself needs no thread: `submit` tells it what to do, `collect` waits,
    and the depth is 2 unless `async_scheduling` is false.
    What a rank raises comes out of `collect` as WorkerLost; after that nothing runs any more.
    `on_load` is told (bytes done, bytes in all) while a rank made here reads weights.
    """

    resident = True

    def __init__(
        self,
        config: EngineConfig,
        rank: Rank | None = None,
        *,
        on_load: Callable[[int, int], None] | None = None,
    ) -> None:
        self.depth = 2 if config.async_scheduling else 1
        self._rank = rank
        self._on_load = on_load
        self._lane: Lane = _Inline()
        self._under_way: deque[Future[Result | Pending]] = deque()
        self._overlaps = False
        self._lost: WorkerLost | None = None

    def start(self, config: EngineConfig) -> Capacity:
        """Load the model, size the cache, and say what came of it.

        Raises ConfigError, LoadError.
        """
        if self._rank is None:
            let_threads_sleep()
            from .worker.worker import Worker

            self._rank = Worker(self._on_load)
        self._overlaps = self._rank.overlaps(config)
        if self._overlaps and config.async_scheduling is None:
            self.depth = 2
        if self.depth > 1 and not self._overlaps:
            self._lane = ThreadPoolExecutor(1, "shoal-rank")
        capacity: Capacity = self._lane.submit(self._rank.start, config).result()
        return capacity

    def watch(self, on_lost: Callable[[WorkerLost], None]) -> None:
        """This process computes itself, and no rank can be lost without it."""

    def ranks(self) -> list[RankState]:
        """What the one rank does; nothing before it is made and after it is gone."""
        rank = self._rank
        return [] if rank is None else [rank.state()]

    def submit(self, plan: Plan) -> None:
        """Compute a plan, or queue it for the executor's thread. Raises WorkerLost."""
        rank = self._ready()
        begin: Callable[[Plan], Result | Pending] = rank.launch if self._overlaps else rank.run
        self._under_way.append(self._lane.submit(begin, plan))

    def supply(self, step: int, masks: object) -> None:
        """No plan announces anything yet, so nothing can be handed in."""
        raise AssertionError(f"plan {step} announced nothing that could be supplied")

    def collect(self) -> Result:
        """The result of the oldest plan under way. Raises WorkerLost."""
        self._ready()
        try:
            found = self._under_way.popleft().result()
            return found if isinstance(found, Result) else found.result()
        except Exception as error:
            self._lost = WorkerLost(f"the engine's rank failed: {type(error).__name__}: {error}")
            raise self._lost from error

    def call(self, method: str, *args: object) -> list[object]:
        """Run a control method behind the plans submitted so far; its own errors pass through."""
        return [self._lane.submit(self._ready().call, method, *args).result()]

    def close(self) -> None:
        """Finish what is being computed, drop what is not, and free the memory."""
        self._lost = self._lost or WorkerLost("the executor is closed")
        self._under_way.clear()
        self._lane.shutdown(cancel_futures=True)
        if self._rank is not None:
            self._rank.close()
            self._rank = None

    def _ready(self) -> Rank:
        if self._lost is not None:
            raise self._lost
        assert self._rank is not None, "start comes first"
        return self._rank


class _Inline(Lane):
    """Runs a call at once, on the thread that submits it."""

    def submit(self, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(call(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future
