"""What a gateway counts: tokens, latencies and ends of requests, where callers are."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

from ..engine.request import Request, Waits
from . import catalog
from .catalog import Family
from .link import Link
from .state import Choice, StreamState
from .tally import Figures, cell, observe


class Counted(Protocol):
    """What of a generation is counted; times are of the monotonic clock, 0 for none yet."""

    state: StreamState
    began: float
    first_token: float
    last_token: float
    predicted: int
    waits: Waits | None

    @property
    def request(self) -> Request:
        """As it was first sent."""
        ...

    @property
    def choices(self) -> Sequence[Choice]:
        """All candidates."""
        ...


class Metrics:
    """The counts of one gateway; all of them are in `figures`."""

    def __init__(self) -> None:
        self.figures: Figures = {}
        self._meters: dict[tuple[str, int], Meter] = {}

    def meter(self, link: Link) -> Meter:
        """Where a generation on that replica is counted."""
        key = link.card.names[0], link.index
        if key not in self._meters:
            self._meters[key] = Meter(self.figures, *key)
        return self._meters[key]

    def lost(self, model: str, cause: str) -> None:
        """Count a replica that was lost, for one of `catalog.CAUSES`, while it had streams."""
        cell(self.figures, catalog.LOST, model, cause)[0] += 1

    def moved(self, model: str, cause: str, num: int) -> None:
        """Count sequences that go on elsewhere: their replica was lost, or needed for a suspect."""
        cell(self.figures, catalog.MOVED, model, cause)[0] += num

    def answered(self, handler: str, method: str, status: int, seconds: float) -> None:
        """Count an HTTP request that has been answered."""
        cell(self.figures, catalog.HTTP, handler, method, str(status))[0] += 1
        taken = cell(self.figures, catalog.HTTP_SECONDS, handler, method)
        observe(taken, catalog.HTTP_SECONDS.buckets, seconds)


class Meter:
    """Counts the generations of one model on its replicas of one number."""

    def __init__(self, figures: Figures, model: str, index: int) -> None:
        self._figures = figures
        self._labels = (model, str(index))
        self._generated = cell(figures, catalog.GENERATED, *self._labels)
        self._gaps = cell(figures, catalog.GAP, *self._labels)

    def tokens(self, num: int, gap_s: float | None) -> None:
        """Count tokens that have come, `gap_s` after the ones before them."""
        self._generated[0] += num
        if gap_s is not None:
            observe(self._gaps, catalog.GAP.buckets, gap_s)

    def began(self, generation: Counted) -> None:
        """Count a generation whose first tokens have come."""
        num_prompt, num_cached = len(generation.request.prompt), generation.state.num_cached or 0
        self._add(catalog.PROMPT, num_prompt)
        self._add(catalog.CACHED, num_cached)
        self._add(catalog.PREDICTED, generation.predicted)
        self._add(catalog.SOURCE, num_prompt - num_cached, "local_compute")
        self._add(catalog.SOURCE, num_cached, "local_cache_hit")
        self._enter(catalog.TO_FIRST, generation.first_token - generation.began)

    def ended(self, generation: Counted, unfinished: str) -> None:
        """Count a generation that has ended; `unfinished` (`abort`, `error`) is why its choices
        without a finish have none.
        """
        for choice in generation.choices:
            reason = choice.finish.value if choice.finish else unfinished
            self._add(catalog.SUCCESS, 1, reason)
            self._enter(catalog.LENGTH, choice.num_tokens)
        params = generation.request.params
        self._enter(catalog.ANSWERS, params.n)
        if params.max_tokens is not None:
            self._enter(catalog.ASKED, params.max_tokens)
        self._enter(catalog.LATENCY, time.monotonic() - generation.began)
        if generation.first_token:
            self._time_spent(generation)

    def _time_spent(self, generation: Counted) -> None:
        longest = max(choice.num_tokens for choice in generation.choices)
        num_prompt = len(generation.request.prompt)
        self._enter(catalog.LONGEST, longest)
        self._enter(catalog.PROMPT_LENGTH, num_prompt)
        self._enter(catalog.COMPUTED_LENGTH, num_prompt - (generation.state.num_cached or 0))
        waits = generation.waits or Waits(0.0, generation.first_token - generation.began)
        decode_s = generation.last_token - generation.first_token
        self._enter(catalog.QUEUE, waits.queued_s)
        self._enter(catalog.PREFILL, waits.prefill_s)
        self._enter(catalog.DECODE, decode_s)
        self._enter(catalog.INFERENCE, waits.prefill_s + decode_s)
        if longest > 1:
            self._enter(catalog.PER_TOKEN, decode_s / (longest - 1))

    def _add(self, family: Family, number: int, *labels: str) -> None:
        cell(self._figures, family, *self._labels, *labels)[0] += number

    def _enter(self, family: Family, value: float) -> None:
        observe(cell(self._figures, family, *self._labels), family.buckets, value)
