"""Goodput: the requests a second that kept every service level objective."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from ...engine.errors import ConfigError
from .stream import Record

METRICS = ("ttft", "tpot", "e2el")


def objectives(words: Iterable[str]) -> dict[str, float]:
    """`ttft:500 tpot:50` as milliseconds by metric. Raises ConfigError."""
    found: dict[str, float] = {}
    for word in (part for text in words for part in text.replace(",", " ").split()):
        name, _, value = word.partition(":")
        try:
            found[name.lower()] = float(value)
        except ValueError:
            raise ConfigError(
                f"--goodput is {word!r}; expected METRIC:MILLISECONDS, such as ttft:500 tpot:50",
                "goodput",
            ) from None
        if name.lower() not in METRICS or not 0 < found[name.lower()] < math.inf:
            raise ConfigError(
                f"--goodput knows {', '.join(METRICS)}, each with milliseconds above 0; got "
                f"{word!r}",
                "goodput",
            )
    return found


def time_to_first(record: Record) -> float:
    """Seconds from the start of a request that succeeded to its first output."""
    return record.arrivals[0] - record.begin


def time_per_token(record: Record) -> float:
    """The mean seconds of an output token after the first; 0 where there is only one."""
    if record.num_output < 2:
        return 0.0
    return (record.arrivals[-1] - record.arrivals[0]) / (record.num_output - 1)


def kept(record: Record, objectives: Mapping[str, float], late_s: float = 0.0) -> bool:
    """Whether a request that succeeded kept all of them.

    What it started late its user has waited too.
    """
    taken = {
        "ttft": late_s + time_to_first(record),
        "tpot": time_per_token(record),
        "e2el": late_s + record.end - record.begin,
    }
    return all(1000 * taken[name] <= limit for name, limit in objectives.items())
