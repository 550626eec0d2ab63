"""What a replica tells the scaling policy, measured between its engine and its channel."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from weakref import WeakValueDictionary

from ..engine.holdings import Holdings
from ..engine.request import FinishReason, Load, Request, StepCost, Update
from .channel import Engine

STEADY = 0.25
"""How much of its streams a replica may have gained or lost while its tokens were counted."""

Sink = Callable[[list[Update]], None]


class Gauge:
    """The Engine that it is given, and how long requests wait for their first tokens there."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._came: dict[str, float] = {}
        self._first_s: list[float] = []
        self._ears: WeakValueDictionary[Sink, _Ear] = WeakValueDictionary()
        self._lock = threading.Lock()
        self._before = Load()
        self._told = time.monotonic()

    def submit(self, request: Request, sink: Sink) -> None:
        """See Engine."""
        self._came[request.id] = time.monotonic()
        with self._lock:
            ear = self._ears.setdefault(sink, _Ear(self, sink))
        try:
            self._engine.submit(request, ear)
        except BaseException:
            self._came.pop(request.id, None)
            raise

    def abort(
        self,
        request_id: str,
        sibling: int | None = None,
        reason: FinishReason = FinishReason.ABORT,
    ) -> None:
        """See Engine."""
        self._came.pop(request_id, None)
        self._engine.abort(request_id, sibling, reason)

    def load(self) -> Load:
        """See Engine."""
        return self._engine.load()

    @property
    def holdings(self) -> Holdings:
        """See Engine."""
        return self._engine.holdings

    def report(self) -> dict[str, float]:
        """The fields of a `fleet.Reading`, for the time since the last report."""
        load, now = self.load(), time.monotonic()
        with self._lock:
            first_s, self._first_s = self._first_s, []
        seconds, self._told = now - self._told, now
        before, self._before = self._before, load
        came = min(list(self._came.values()), default=now)
        cost = load.step_cost or StepCost(0.0, 0.0)
        return {
            "running": load.running,
            "waiting": load.waiting,
            "kv_usage": load.kv_usage,
            "queue_s": now - came,
            "ttft_s": sum(first_s) / len(first_s) if first_s else 0.0,
            "tokens_per_s": (_tokens(load) - _tokens(before)) / max(seconds, 1e-3),
            "steady": float(abs(load.running - before.running) <= STEADY * load.running),
            **cost._asdict(),
        }

    def hear(self, updates: list[Update]) -> None:
        """Note whose first tokens these are."""
        if not self._came:
            return
        now = time.monotonic()
        for update in updates:
            if (update.tokens or update.finish) and update.id in self._came:
                came = self._came.pop(update.id, now)
                if update.tokens:
                    with self._lock:
                        self._first_s.append(now - came)


class _Ear:
    """A sink that lets the gauge hear; one a sink, so that an engine still hands over all of a step
    at once.
    """

    __slots__ = ("__weakref__", "_gauge", "_sink")

    def __init__(self, gauge: Gauge, sink: Sink) -> None:
        self._gauge = gauge
        self._sink = sink

    def __call__(self, updates: list[Update]) -> None:
        self._gauge.hear(updates)
        self._sink(updates)


def _tokens(load: Load) -> float:
    return (load.counters or {}).get("generation_tokens", 0.0)
