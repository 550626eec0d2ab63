"""Wakes a model that was scaled to nothing: one pending call through Serve, and requests wait."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from ..engine.errors import EngineLost, Overloaded

LOOK_S = 0.02
RETRY_S = 0.5

log = logging.getLogger(__name__)


class Waker:
    """Used on one event loop. `call` asks a replica for anything and blocks until it answers.

    At most `max_waiting` requests wait, each `timeout_s` at most.
    """

    def __init__(
        self, name: str, call: Callable[[], object], *, timeout_s: float, max_waiting: int
    ) -> None:
        self._name = name
        self._call = call
        self._timeout_s = timeout_s
        self._max_waiting = max_waiting
        self._num_waiting = 0
        self._caller = ThreadPoolExecutor(1, "waker")
        self._pending: Future[object] | None = None

    async def wake(self, able: Callable[[], object]) -> None:
        """Return once `able` is true. Raises EngineLost after the bound, Overloaded where too many
        wait already.
        """
        if self._num_waiting >= self._max_waiting:
            raise Overloaded(
                f"{self._max_waiting} requests wait for {self._name} to start already",
                self._timeout_s,
            )
        self._num_waiting += 1
        try:
            await self._wait(able)
        finally:
            self._num_waiting -= 1

    def ask(self) -> None:
        """Ask for a replica, unless that is under way."""
        if self._pending is None or self._pending.done():
            log.info("%s has no replica; a request asks for one", self._name)
            self._pending = self._caller.submit(self._ask)

    async def _wait(self, able: Callable[[], object]) -> None:
        began = time.monotonic()
        while not able():
            self.ask()
            if time.monotonic() - began > self._timeout_s:
                raise EngineLost(
                    f"{self._name} had no replica, and none was ready within "
                    f"{self._timeout_s:g} s (autoscaling.cold_start_timeout_s)"
                )
            await asyncio.sleep(LOOK_S)

    def _ask(self) -> None:
        try:
            self._call()
        except Exception as error:
            log.warning("no replica of %s answered: %s", self._name, error)
            time.sleep(RETRY_S)
