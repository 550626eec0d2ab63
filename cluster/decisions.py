"""A gateway's ear at the scaling policy: its decisions come to the log and to the figures."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from . import catalog
from .facts import Facts
from .pool import Pool
from .scaling_policy import KIND
from .tally import Figures, cell

LOOK_S = 1.0

log = logging.getLogger(__name__)


class Decisions:
    """The decisions of an application's policies, as `follow` finds them in its facts."""

    def __init__(self, facts: Facts, pool: Pool) -> None:
        self._facts = facts
        self._pool = pool
        self._heard: dict[str, float] = {}
        self._began = time.time()

    async def follow(self) -> None:
        """Look for new ones again and again, until cancelled; a head that is lost is waited for."""
        while True:
            try:
                for model, fact in (await asyncio.to_thread(self._facts.all, KIND)).items():
                    self._hear(model, fact)
            except Exception as error:
                log.debug("no word of the scaling policy: %s", error)
            await asyncio.sleep(LOOK_S)

    def _hear(self, model: str, fact: dict[str, Any]) -> None:
        last = self._heard.get(model, self._began)
        for decision in fact["decisions"]:
            if decision["at"] > last:
                log.info("%s: %s", model, decision["line"])
                self._heard[model] = decision["at"]
        figures: Figures = {}
        for direction, count in fact["counts"].items():
            cell(figures, catalog.SCALING, model, direction)[0] = count
        self._pool.take(f"scaling/{model}", figures)
