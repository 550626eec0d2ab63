"""What is known of all counts: this gateway's own, the replicas', and other gateways'.

    replicas ── loads ──> Pool <── Peers ──> the pools of other gateways
                            │
                            └── exposition

A pool keeps the last record of every source, also of one that has left, and records are merged by
the larger number: whoever is asked, and whoever is out of reach, no sum ever goes back.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec

from . import catalog
from .link import Link, Router
from .metrics import Metrics
from .tally import Figures, cell, merge, total

_COUNTERS = (
    (catalog.QUERIES, "prefix_queries"),
    (catalog.HITS, "prefix_hits"),
    (catalog.PREEMPTIONS, "preemptions"),
)
_STEP_KEYS = (
    *(f"step_tokens_{bound:g}" for bound in catalog.STEP.buckets),
    "step_tokens_0",
    "computed_tokens",
)

_Record = dict[str, list[tuple[str, tuple[str, ...], list[float]]]]
_decoder = msgspec.msgpack.Decoder(_Record)


class Pool:
    """The counts of the gateway `name`, which it raises by `metrics`, and of all other sources.

    `ask`, where there are other gateways, takes in what they know, within a bounded time.
    """

    def __init__(self, router: Router, name: str = "gateway") -> None:
        self.name = name
        self.metrics = Metrics()
        self.router = router
        self.ask: Callable[[], Awaitable[None]] | None = None
        self._sources: dict[str, Figures] = {f"gateway/{name}": self.metrics.figures}

    async def totals(self) -> Figures:
        """The sums over all sources, as far as they can be known."""
        if self.ask is not None:
            await self.ask()
        self._hear()
        return total(self._sources.values())

    def hear(self, link: Link) -> None:
        """Take in a replica's counters, as of its last message."""
        counters = link.load.counters
        if counters is not None:
            labels = link.card.names[0], str(link.index)
            figures: Figures = {}
            for family, key in _COUNTERS:
                cell(figures, family, *labels)[0] = counters.get(key, 0.0)
            figures[catalog.STEP.name, labels] = [counters.get(key, 0.0) for key in _STEP_KEYS]
            merge(self._sources.setdefault(f"replica/{link.replica}", {}), figures)

    def take(self, source: str, figures: Figures) -> None:
        """Take in counts of something else, which every gateway may hear of."""
        merge(self._sources.setdefault(source, {}), figures)

    def record(self) -> bytes:
        """All that is known, for another pool to `learn`."""
        self._hear()
        record = {
            source: [(name, labels, values) for (name, labels), values in figures.items()]
            for source, figures in self._sources.items()
        }
        return msgspec.msgpack.encode(record)

    def learn(self, record: bytes) -> None:
        """Take in what another pool knows. Raises msgspec.MsgspecError for what is no record."""
        for source, series in _decoder.decode(record).items():
            known = self._sources.setdefault(source, {})
            if known is not self.metrics.figures:
                merge(known, {(name, labels): values for name, labels, values in series})

    def _hear(self) -> None:
        for link in self.router.links():
            self.hear(link)
