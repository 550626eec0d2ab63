"""Prometheus metrics of one gateway and the replicas it sees, with vLLM's meanings.

Names begin with `shoal_`; behind that they are vLLM's. Tokens, latencies and ends are counted
here, where callers are; load and cache figures are the replicas' own, as of their last message.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from .link import Router
from .stream import Generation

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

_FIRST_TOKEN_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
_PER_TOKEN_S = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
_REQUEST_S = (
    *(0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
_TOKENS = tuple(float(m * 10**e) for e in range(6) for m in (1, 2, 5))
_GAUGES = (
    ("num_requests_running", "Requests being computed.", "running"),
    ("num_requests_waiting", "Requests waiting to be computed.", "waiting"),
    ("kv_cache_usage_perc", "Share of the KV cache in use; 1 means all of it.", "kv_usage"),
)
_COUNTERS = (
    ("prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", "prefix_queries"),
    ("prefix_cache_hits", "Prompt tokens found in the prefix cache.", "prefix_hits"),
    ("num_preemptions", "Sequences that had to give their cache back.", "preemptions"),
)


class Metrics:
    """The figures of one gateway."""

    def __init__(self, router: Router) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Replicas(router))
        self._success = self._counter(
            "request_success", "Requests that ended, by reason.", "finished_reason"
        )
        self._prompt = self._counter("prompt_tokens", "Prompt tokens of requests that began.")
        self._generated = self._counter("generation_tokens", "Tokens generated.")
        self._first = self._histogram(
            "time_to_first_token_seconds", "From request to first token.", _FIRST_TOKEN_S
        )
        self._per_token = self._histogram(
            "request_time_per_output_token_seconds",
            "Mean time between a request's tokens.",
            _PER_TOKEN_S,
        )
        self._request = self._histogram(
            "e2e_request_latency_seconds", "From request to last token.", _REQUEST_S
        )
        self._prompt_length = self._histogram(
            "request_prompt_tokens", "Prompt tokens a request.", _TOKENS
        )
        self._length = self._histogram(
            "request_generation_tokens", "Tokens generated a request.", _TOKENS
        )
        self._http = Counter(
            "shoal_http_requests",
            "HTTP requests, by route, method and status.",
            ("handler", "method", "status"),
            registry=self._registry,
        )
        self._http_seconds = Histogram(
            "shoal_http_request_duration_seconds",
            "From an HTTP request to the end of its answer.",
            ("handler", "method"),
            buckets=_REQUEST_S,
            registry=self._registry,
        )

        self._lost = self._counter(
            "failovers", "Replicas lost with streams under way, by cause.", "cause"
        )
        self._moved = self._counter(
            "streams_moved", "Sequences that had to go on at another replica, by cause.", "cause"
        )

    def lost(self, model: str, cause: str) -> None:
        """Count a replica that was lost (`died`, `silent`, `left`) while it had streams."""
        self._lost.labels(model, cause).inc()

    def moved(self, model: str, cause: str, num: int) -> None:
        """Count sequences that go on elsewhere: their replica was lost, or needed for a suspect."""
        self._moved.labels(model, cause).inc(num)

    def answered(self, handler: str, method: str, status: int, seconds: float) -> None:
        """Count an HTTP request that has been answered."""
        self._http.labels(handler, method, str(status)).inc()
        self._http_seconds.labels(handler, method).observe(seconds)

    def first_token(self, model: str, generation: Generation) -> None:
        """Count a generation whose first tokens have come."""
        num_prompt = len(generation.request.prompt)
        self._prompt.labels(model).inc(num_prompt)
        self._prompt_length.labels(model).observe(num_prompt)
        self._first.labels(model).observe(generation.first_token - generation.began)

    def ended(self, model: str, generation: Generation, unfinished: str) -> None:
        """Count a generation that has ended; `unfinished` (`abort`, `error`) is why its choices
        without a finish have none.
        """
        num_tokens = 0
        for choice in generation.choices:
            reason = choice.finish.value if choice.finish else unfinished
            self._success.labels(model, reason).inc()
            num_tokens += choice.num_tokens
            self._length.labels(model).observe(choice.num_tokens)
        self._generated.labels(model).inc(num_tokens)
        self._request.labels(model).observe(time.monotonic() - generation.began)
        longest = max(choice.num_tokens for choice in generation.choices)
        if longest > 1:
            seconds = generation.last_token - generation.first_token
            self._per_token.labels(model).observe(seconds / (longest - 1))

    def exposition(self) -> bytes:
        """All figures, as Prometheus reads them."""
        return generate_latest(self._registry)

    def _counter(self, name: str, help: str, *labels: str) -> Counter:
        return Counter(f"shoal_{name}", help, ("model_name", *labels), registry=self._registry)

    def _histogram(self, name: str, help: str, buckets: Sequence[float]) -> Histogram:
        return Histogram(
            f"shoal_{name}", help, ("model_name",), buckets=buckets, registry=self._registry
        )


class _Replicas:
    """Reads the replicas' own figures whenever they are asked for."""

    def __init__(self, router: Router) -> None:
        self._router = router

    def collect(self) -> Iterator[Metric]:
        """One sample a replica of each figure."""
        links = self._router.links()
        labels = ("model_name", "engine")
        for name, help, field in _GAUGES:
            gauge = GaugeMetricFamily(f"shoal_{name}", help, labels=labels)
            for link in links:
                gauge.add_metric(
                    (link.card.names[0], link.replica), float(getattr(link.load, field))
                )
            yield gauge
        for name, help, field in _COUNTERS:
            counter = CounterMetricFamily(f"shoal_{name}", help, labels=labels)
            for link in links:
                value = (link.load.counters or {}).get(field, 0.0)
                counter.add_metric((link.card.names[0], link.replica), value)
            yield counter
