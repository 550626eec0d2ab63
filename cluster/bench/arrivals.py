"""When requests start: as room comes (closed loop), or at moments of their own (open loop)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random

from ...engine.errors import ConfigError

UNBOUNDED = 1 << 16
STRATEGIES = ("linear", "exponential")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ramp:
    """A rate that goes from `start` to `end` requests a second over all requests."""

    strategy: str
    start: float
    end: float

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            known = " or ".join(STRATEGIES)
            raise ConfigError(
                f"--ramp-up-strategy must be {known}, got {self.strategy!r}", "ramp_up_strategy"
            )
        if not 0 < self.start <= self.end < math.inf:
            raise ConfigError(
                f"--ramp-up-start-rps ({self.start:g}) must be above 0 and at most "
                f"--ramp-up-end-rps ({self.end:g}), which has an end",
                "ramp_up_start_rps",
            )

    def rate(self, share: float) -> float:
        """The rate when this share of the requests has started."""
        if self.strategy == "linear":
            return self.start + (self.end - self.start) * share
        return self.start * math.pow(self.end / self.start, share)


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One load: at most `concurrency` requests at once, starting `rate` a second on average.

    A rate of infinity starts each as soon as there is room: a closed loop. Otherwise the intervals
    are drawn from a gamma distribution of shape `burstiness`: 1 is a Poisson process, less comes in
    bursts, more is more even. With `ramp` the rate rises.
    """

    concurrency: int = UNBOUNDED
    rate: float = math.inf
    burstiness: float = 1.0
    ramp: Ramp | None = None

    def __post_init__(self) -> None:
        if self.concurrency < 1:
            raise ConfigError(
                f"--max-concurrency must be at least 1, got {self.concurrency}", "max_concurrency"
            )
        if not self.rate > 0:
            raise ConfigError(f"--request-rate must be above 0, got {self.rate}", "request_rate")
        if not 0 < self.burstiness < math.inf:
            raise ConfigError(
                f"--burstiness must be a number above 0, got {self.burstiness}", "burstiness"
            )

    @property
    def closed(self) -> bool:
        """Whether requests wait for answers alone."""
        return math.isinf(self.rate) and self.ramp is None

    @property
    def bounded(self) -> bool:
        """Whether requests wait for room."""
        return self.concurrency < UNBOUNDED

    @property
    def title(self) -> str:
        """The load in a few words."""
        bound = f"{self.concurrency} at once" if self.bounded else ""
        if self.closed:
            return bound or "all at once"
        ramp = self.ramp
        pace = f"{ramp.start:g} to {ramp.end:g}" if ramp else f"{self.rate:g}"
        burst = f", burstiness {self.burstiness:g}" if self.burstiness != 1 else ""
        rate = f"{pace} requests/s{burst}"
        return f"{rate}, {bound} at most" if bound else rate


def starts(level: Level, num: int, random: Random) -> list[float]:
    """The seconds after the beginning at which requests are due, in order.

    The first is due at once. The intervals are scaled, so that `num` requests take as long as the
    rate says whatever was drawn.
    """
    if level.closed or not num:
        return [0.0] * num
    asked = [level.ramp.rate(i / num) if level.ramp else level.rate for i in range(num - 1)]
    shape = level.burstiness
    drawn = [random.gammavariate(shape, 1 / (rate * shape)) for rate in asked]
    whole = sum(1 / rate for rate in asked)
    scale = whole / sum(drawn) if sum(drawn) else 0.0
    due = [0.0]
    for interval in drawn:
        due.append(due[-1] + interval * scale)
    return due


def levels(
    max_concurrency: str | None,
    request_rate: str | None,
    burstiness: float = 1.0,
    ramp: Ramp | None = None,
) -> tuple[Level, ...]:
    """The levels of `1,8,32` requests at once, of `0.5,1,2` a second, or of each with each.

    Neither: 8 at once. A rate of `inf` alone: all at once. Raises ConfigError.
    """
    if ramp is not None and request_rate is not None:
        raise ConfigError("--ramp-up-strategy sets the rate; remove --request-rate", "request_rate")
    rates = _numbers("--request-rate", request_rate, float) or [math.inf]
    counts = [int(count) for count in _numbers("--max-concurrency", max_concurrency, int)]
    if not counts:
        counts = [8 if request_rate is None and ramp is None else UNBOUNDED]
    return tuple(
        Level(concurrency=count, rate=rate, burstiness=burstiness, ramp=ramp)
        for rate in rates
        for count in counts
    )


def _numbers(flag: str, text: str | None, kind: type) -> list[float]:
    if text is None:
        return []
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        example = "8 or 1,8,32" if kind is int else "2 or 0.5,1,2"
        key = flag[2:].replace("-", "_")
        raise ConfigError(f"{flag} is {text!r}; expected numbers such as {example}", key) from None
