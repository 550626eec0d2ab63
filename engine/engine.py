"""The loop on a thread of its own: requests in from any thread, updates out once a step."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import NamedTuple

from . import admission
from .config import EngineConfig
from .core.scheduler import Scheduler
from .errors import EngineLost, InvalidRequest, Overloaded, WorkerLost, WorkerStalled
from .executor import Capacity, Executor
from .executors import executor_for
from .features.beams import search_of
from .holdings import Holdings
from .loop import Loop
from .request import FinishReason, Load, Request, Update

log = logging.getLogger(__name__)

QUIET_S = 1.0
"""How long an engine idles before it verifies its books, so that no request waits for that."""

Sink = Callable[[list[Update]], None]


@dataclass(slots=True, eq=False)
class _Stream:
    """One live sequence, or one answer of a beam `search`, which shares its name with no other.
    `begun` once the scheduler knows it: what comes earlier under its name was meant for one that
    was aborted.
    """

    sink: Sink
    epoch: int
    search: bool
    begun: bool = False


class _Abort(NamedTuple):
    id: str
    sibling: int | None
    reason: FinishReason


class AsyncEngine:
    """An engine that runs beside its callers.

    It knows token ids alone: stop strings, text and `bad_words` are the callers' (`text.py`).
    `submit`, `abort` and `load` may be called from any thread, sinks too. `executor` is who
    computes, from `start` on. `rehearses`: before the first request it finds out what a step of a
    lone stream costs, in a few of them. `streams`: somebody waits for each token, so that prompts
    have no more of a step than the device is best at; else all of it.
    """

    def __init__(
        self,
        config: EngineConfig,
        executor: Executor | None = None,
        *,
        rehearses: bool = False,
        streams: bool = True,
    ) -> None:
        self.config = config
        self.executor = executor
        self._rehearses, self._streams = rehearses, streams
        self._capacity: Capacity | None = None
        self._seeds = admission.Seeds(config.seed)
        self._thread = threading.Thread(target=self._main, name="shoal-engine", daemon=True)
        self._loaded: SimpleQueue[BaseException | None] = SimpleQueue()
        self._wake = threading.Condition()
        # Guarded by `_wake`:
        self._inbox: deque[Request | _Abort | Update] = deque()
        self._coming = 0
        self._live: dict[str, dict[int, _Stream]] = {}
        self._lost: EngineLost | None = None
        self._lost_rank: WorkerLost | None = None
        self._closing = False

    def start(self) -> Capacity:
        """Load the model and begin to run; returns when requests can come.

        Raises ConfigError, LoadError.
        """
        self._thread.start()
        if (failure := self._loaded.get()) is not None:
            self._thread.join()
            raise failure
        return self.capacity

    @property
    def capacity(self) -> Capacity:
        """What start-up found out."""
        assert self._capacity is not None, "start comes first"
        return self._capacity

    @property
    def holdings(self) -> Holdings:
        """Which prefixes its cache holds; empty where prefix caching is off."""
        assert self._capacity is not None, "start comes first"
        return self._scheduler.kv.holdings

    def submit(self, request: Request, sink: Sink) -> None:
        """Take on a request. A missing seed is drawn from `config.seed`.

        `sink` is called on the engine's thread, once a step, with all updates of the requests that
        came with it (equal sinks are one). It must not block. Raises InvalidRequest,
        ContextTooLong, Overloaded and EngineLost at once.
        """
        admission.check(request, self.config, self.capacity)
        request = self._seeds.give(request)
        end = admission.ended(request, self.capacity)
        with self._wake:
            self._check_alive()
            family = self._live.get(request.id, {})
            siblings = range(request.sibling, request.sibling + request.params.n)
            search = request.params.use_beam_search
            together = family and (search or any(stream.search for stream in family.values()))
            if together or not family.keys().isdisjoint(siblings):
                raise InvalidRequest(f"a request {request.id!r} is running already", "request_id")
            if (waiting := self._num_waiting()) >= self.config.max_waiting:
                raise Overloaded(
                    f"{waiting} requests are waiting, and at most {self.config.max_waiting} may; "
                    f"come again later"
                )
            self._live[request.id] = family | {
                sibling: _Stream(sink, request.epoch, search) for sibling in siblings
            }
            self._inbox.append(request if end is None else end)
            self._coming += request.params.n
            self._wake.notify()

    def abort(
        self,
        request_id: str,
        sibling: int | None = None,
        reason: FinishReason = FinishReason.ABORT,
    ) -> None:
        """Drop a request, or one of its siblings, before the next step. Unknown ids are ignored.

        It counts as ended for `reason`: STOP where a caller has found a stop string.

        No update of it follows, but for one that its sink is being given right now.
        """
        with self._wake:
            family = self._live.get(request_id, {})
            dropped = [s for s in family if sibling in (None, s)]
            for s in dropped:
                self._forget(request_id, s)
            if dropped:
                self._inbox.append(_Abort(request_id, sibling, reason))
                self._wake.notify()

    async def generate(self, request: Request) -> AsyncIterator[Update]:
        """The updates of one request, up to the last of each sibling.

        Leaving the iteration early aborts the request. Raises what `submit` raises; an engine that
        dies meanwhile shows as updates that finish with ERROR.
        """
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[list[Update]] = asyncio.Queue()

        def sink(updates: list[Update]) -> None:
            loop.call_soon_threadsafe(queue.put_nowait, updates)

        self.submit(request, sink)
        left = request.params.n
        try:
            while left:
                for update in await queue.get():
                    left -= update.finish is not None
                    yield update
        finally:
            if left:
                self.abort(request.id)

    @property
    def alive(self) -> bool:
        """Whether it takes requests, as far as is known; never waits."""
        return self._capacity is not None and self._lost is None and not self._closing

    def load(self) -> Load:
        """How busy the engine is. Raises EngineLost when it has died."""
        with self._wake:
            self._check_alive()
            waiting = self._scheduler.num_waiting + self._coming
            coming = [len(r.prompt) for r in self._inbox if isinstance(r, Request)]
            room = max(0, self.config.max_waiting + self._num_free() - waiting)
        counters = self._scheduler.counters
        counted: dict[str, float] = {}
        for field in dataclasses.fields(counters):
            value = getattr(counters, field.name)
            if isinstance(value, dict):
                counted |= {f"{field.name}_{key}": number for key, number in value.items()}
            else:
                counted[field.name] = value
        ranks = tuple(self.executor.ranks()) if self.executor is not None else ()
        return Load(
            running=self._scheduler.num_running,
            waiting=waiting,
            deferred=self._scheduler.num_deferred,
            tokens=self._scheduler.num_behind + sum(coming),
            room=room,
            kv_usage=self._scheduler.kv_usage,
            counters=counted,
            step_cost=self._loop.costs.known(),
            ticks=self._loop.num_steps + sum(rank.ticks for rank in ranks),
            ranks=ranks,
        )

    def close(self) -> None:
        """End the thread after its step and free the model; what still runs finishes with ERROR.

        Harmless when repeated. Raises AssertionError if the books did not balance.
        """
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._capacity is None or self._thread is threading.current_thread():
            return  # a load under way cannot be stopped; the thread ends after it
        self._thread.join()
        bug = self._lost.__cause__ if self._lost is not None else None
        if isinstance(bug, AssertionError):
            raise bug

    # Under the lock.

    def _check_alive(self) -> None:
        if self._lost is not None:
            raise type(self._lost)(*self._lost.args)
        if self._closing:
            raise EngineLost("the engine is closed")
        if self._capacity is None:
            raise EngineLost("the engine has not started yet")

    def _num_waiting(self) -> int:
        """Sequences that wait, as far as one can know while a step is under way: of those to come,
        as many as there are free slots will not.
        """
        return max(0, self._scheduler.num_waiting + self._coming - self._num_free())

    def _num_free(self) -> int:
        return self.config.max_num_seqs - self._scheduler.num_running

    def _forget(self, request_id: str, sibling: int) -> None:
        family = self._live[request_id]
        del family[sibling]
        if not family:
            del self._live[request_id]

    # On the engine's thread.

    def _main(self) -> None:
        """All that an executor does, from its start to its end, happens on this thread."""
        with contextlib.ExitStack() as stack:
            try:
                self.executor = self.executor or executor_for(self.config)
                stack.callback(self.executor.close)
                self._load(self.executor)
            except BaseException as error:
                self._loaded.put(error)
                return
            self._loaded.put(None)
            self._run()

    def _load(self, executor: Executor) -> None:
        capacity = executor.start(self.config)
        executor.watch(self._lose_rank)
        if not self._streams:
            capacity = dataclasses.replace(capacity, prompt_tokens=None)
        self._scheduler = Scheduler(
            self.config,
            capacity,
            depth=executor.depth,
            resident=executor.resident,
            lockstep_of=search_of(capacity.eos_token_ids),
        )
        self._loop = Loop(self._scheduler, executor)
        if self._rehearses:
            self._loop.rehearse()
        self._capacity = capacity

    def _lose_rank(self, lost: WorkerLost) -> None:
        with self._wake:
            self._lost_rank = lost
            self._wake.notify()

    def _run(self) -> None:
        try:
            verified = True
            while self._wait(None if verified else QUIET_S):
                if self._lost_rank is not None:
                    raise self._lost_rank
                if self._inbox or self._loop.unfinished:
                    self._deliver(self._take_in())
                    self._deliver(self._loop.step())
                    verified = False
                else:
                    self._scheduler.verify()
                    verified = True
            if not self._loop.unfinished:
                self._scheduler.verify()
            self._end(EngineLost("the engine is closed"))
        except BaseException as error:
            kind = type(error) if isinstance(error, WorkerStalled) else EngineLost
            lost = kind(f"the engine died: {error or type(error).__name__}")
            lost.__cause__ = error
            # Of a rank that is lost the words say all; where it was missed explains nothing.
            log.critical("%s", lost, exc_info=None if isinstance(error, WorkerLost) else error)
            self._end(lost)

    def _wait(self, quiet_s: float | None) -> bool:
        """Sleep until there is work, or for `quiet_s`. False when the engine is to end."""
        with self._wake:
            self._wake.wait_for(
                lambda: self._inbox or self._closing or self._lost_rank or self._loop.unfinished,
                quiet_s,
            )
            return not self._closing

    def _take_in(self) -> list[Update]:
        """Hand the inbox to the scheduler. The ends of requests that have nothing left to do."""
        with self._wake:
            items, self._inbox = self._inbox, deque()
            self._coming = 0
            for item in items:
                if not isinstance(item, _Abort):
                    for stream in self._live.get(item.id, {}).values():
                        stream.begun = True
        ends: dict[tuple[str, int], Update] = {}
        for item in items:
            if isinstance(item, Update):
                ends[item.id, item.sibling] = item
            elif isinstance(item, Request):
                self._loop.add(item)
            else:
                self._loop.abort(*item)
                for id, sibling in [*ends]:
                    if id == item.id and item.sibling in (None, sibling):
                        del ends[id, sibling]
        return list(ends.values())

    def _deliver(self, updates: list[Update]) -> None:
        """Give each sink its updates of this step."""
        batches: dict[Sink, list[Update]] = {}
        with self._wake:
            for update in updates:
                family = self._live.get(update.id)
                stream = family.get(update.sibling) if family else None
                if stream is None or not stream.begun:
                    continue
                if update.finish is not None:
                    self._forget(update.id, update.sibling)
                if stream.sink in batches:
                    batches[stream.sink].append(update)
                else:
                    batches[stream.sink] = [update]
        for sink, batch in batches.items():
            try:
                sink(batch)
            except Exception:
                log.exception("a sink failed; its requests are dropped")
                for id in {update.id for update in batch}:
                    self.abort(id)

    def _end(self, lost: EngineLost) -> None:
        """Refuse what comes from now on, and tell every live request."""
        with self._wake:
            self._lost = lost
            live, self._live = self._live, {}
            self._inbox.clear()
        batches: dict[Sink, list[Update]] = {}
        for id, family in live.items():
            for sibling, stream in family.items():
                end = Update(
                    id, sibling, finish=FinishReason.ERROR, error=lost.message, epoch=stream.epoch
                )
                batches.setdefault(stream.sink, []).append(end)
        for sink, batch in batches.items():
            with contextlib.suppress(Exception):
                sink(batch)
