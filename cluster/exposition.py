"""All figures as Prometheus reads them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.utils import floatToGoString

from . import catalog
from .catalog import FAMILIES, OF_MODEL, Family
from .link import Link
from .tally import Cell, Figures, cell

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_GAUGES = (
    ("num_requests_running", "Requests being computed.", "running"),
    ("num_requests_waiting", "Requests waiting to be computed.", "waiting"),
    ("kv_cache_usage_perc", "Share of the KV cache in use; 1 means all of it.", "kv_usage"),
)


def exposition(figures: Figures, links: Sequence[Link], *, vllm_names: bool = False) -> bytes:
    """The counts, and the load of the replicas that `links` lead to.

    `vllm_names` adds what vLLM has too under the names that it has there.
    """
    _add_zeros(figures, links)
    collected = _Collected(figures, links, vllm_names)
    registry = CollectorRegistry()
    registry.register(collected)
    return generate_latest(registry)


def _add_zeros(figures: Figures, links: Sequence[Link]) -> None:
    """So that what has not happened yet shows as 0, and a rate begins there."""
    for name in {link.card.names[0] for link in links}:
        for family in (catalog.LOST, catalog.MOVED):
            for cause in catalog.CAUSES:
                cell(figures, family, name, cause)
        for direction in catalog.DIRECTIONS:
            cell(figures, catalog.SCALING, name, direction)
    for name, index in {(link.card.names[0], link.index) for link in links}:
        for family in FAMILIES:
            if family.labels == OF_MODEL:
                cell(figures, family, name, str(index))
        for reason in catalog.REASONS:
            cell(figures, catalog.SUCCESS, name, str(index), reason)
        for source in catalog.SOURCES:
            cell(figures, catalog.SOURCE, name, str(index), source)


class _Collected:
    """A collector in prometheus_client's sense."""

    def __init__(self, figures: Figures, links: Sequence[Link], vllm_names: bool) -> None:
        self._cells: dict[str, list[tuple[tuple[str, ...], Cell]]] = {}
        for (name, labels), values in sorted(figures.items()):
            self._cells.setdefault(name, []).append((labels, values))
        self._links = sorted(links, key=lambda link: (link.card.names[0], link.index))
        self._vllm_names = vllm_names

    def collect(self) -> Iterator[Metric]:
        """Every figure there is."""
        yield from self._loads("shoal_")
        yield from self._counts("shoal_", [(family, family.name) for family in FAMILIES])
        if self._vllm_names:
            yield from self._loads("vllm:")
            yield from self._counts("vllm:", [(f, f.vllm) for f in FAMILIES if f.vllm])

    def _counts(self, prefix: str, named: Sequence[tuple[Family, str]]) -> Iterator[Metric]:
        for family, name in named:
            cells = self._cells.get(family.name, ())
            if family.buckets:
                histogram = HistogramMetricFamily(prefix + name, family.help, labels=family.labels)
                for labels, values in cells:
                    histogram.add_metric(labels, _buckets(family, values), values[-1])
                yield histogram
            else:
                counter = CounterMetricFamily(prefix + name, family.help, labels=family.labels)
                for labels, values in cells:
                    counter.add_metric(labels, values[0])
                yield counter

    def _loads(self, prefix: str) -> Iterator[Metric]:
        for name, help, field in _GAUGES:
            gauge = GaugeMetricFamily(prefix + name, help, labels=OF_MODEL)
            for labels, links in self._by_index().items():
                held = [float(getattr(link.load, field)) for link in links]
                gauge.add_metric(labels, max(held) if field == "kv_usage" else sum(held))
            yield gauge
        yield self._waiting(prefix)
        yield self._cache_config(prefix)

    def _by_index(self) -> dict[tuple[str, str], list[Link]]:
        """Replicas by their labels; while one replaces another, two may have the same."""
        found: dict[tuple[str, str], list[Link]] = {}
        for link in self._links:
            found.setdefault((link.card.names[0], str(link.index)), []).append(link)
        return found

    def _waiting(self, prefix: str) -> Metric:
        gauge = GaugeMetricFamily(
            f"{prefix}num_requests_waiting_by_reason",
            "Requests waiting for room (capacity), or for a sibling's step (deferred).",
            labels=(*OF_MODEL, "reason"),
        )
        for labels, links in self._by_index().items():
            deferred = sum(link.load.deferred for link in links)
            waiting = sum(link.load.waiting for link in links)
            gauge.add_metric((*labels, "capacity"), max(0, waiting - deferred))
            gauge.add_metric((*labels, "deferred"), deferred)
        return gauge

    def _cache_config(self, prefix: str) -> Metric:
        keys = sorted({key for link in self._links for key in link.card.cache})
        gauge = GaugeMetricFamily(
            f"{prefix}cache_config_info",
            "How a replica's KV cache is made; always 1.",
            labels=(*OF_MODEL, *keys),
        )
        for (name, index), links in self._by_index().items():
            cache = links[-1].card.cache
            gauge.add_metric((name, index, *(cache.get(key, "") for key in keys)), 1)
        return gauge


def _buckets(family: Family, values: Cell) -> list[tuple[str, float]]:
    bounds = [*map(floatToGoString, family.buckets), "+Inf"]
    return list(zip(bounds, accumulate(values[:-1]), strict=True))
