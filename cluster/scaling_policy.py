"""Ray Serve's autoscaling policy for a model: runs in Serve's controller, asks `scaling.decide`.

    replica  Gauge.report --every REPORT_S--> controller  ServePolicy -> scaling.decide -> replicas
                                                              |
                                                    fact scaling/<model>: the last decisions

A fact of a decision is written beside the controller's event loop, so that a lost head holds
nothing up.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

# Serve pickles what this module holds by value, but modules by name.
from . import facts, fleet, knee, scaling

REPORT_S = 0.5
LOOK_BACK_S = 2.5
KEPT = 20
KIND = "scaling"

log = logging.getLogger("ray.serve")


class Context(Protocol):
    """What is used of Serve's AutoscalingContext."""

    target_num_replicas: int
    running_replicas: list[Any]
    total_num_requests: float
    raw_metrics: Mapping[str, Mapping[Any, list[Any]]] | None


class ServePolicy:
    """The policy of one model of an application; Serve makes one and calls it all the time."""

    def __init__(self, app: str, model: str, targets: dict[str, Any]) -> None:
        self._facts = facts.Facts(app)
        self._model = model
        self._targets = fleet.Targets(**targets)
        self._state = fleet.State()
        self._decisions: list[dict[str, Any]] = []
        self._counts = dict.fromkeys(("up", "down", "stay"), 0)
        self._asked = float("-inf")
        self._writer = ThreadPoolExecutor(1, "scaling-facts")

    def __call__(self, context: Context) -> tuple[int, dict[str, Any]]:
        """See Serve: the number of replicas, and no state, which is kept here."""
        now = time.monotonic()
        if now - self._asked < REPORT_S:
            return context.target_num_replicas, {}
        self._asked = now
        seen = fleet.Fleet(
            now=now,
            target=context.target_num_replicas,
            readings=readings(context),
            pending=0.0 if context.running_replicas else context.total_num_requests,
        )
        before = self._state.target  # Serve itself may have moved it since, as to wake a model
        self._state, replicas, line = scaling.decide(self._state, seen, self._targets)
        if line:
            self._tell(seen, seen.target if before is None else before, replicas, line)
        return replicas, {}

    def _tell(self, seen: fleet.Fleet, before: int, replicas: int, line: str) -> None:
        log.info("%s: %s", self._model, line)
        ways = replicas - before
        self._counts["up" if ways > 0 else "down" if ways < 0 else "stay"] += 1
        said = {"at": time.time(), "from": before, "to": replicas, "line": line}
        self._decisions = [*self._decisions, said][-KEPT:]
        fact = {
            "target": replicas,
            "ready": len(seen.readings),
            "min": self._targets.min_replicas,
            "max": self._targets.max_replicas,
            "sustains": knee.sustained(self._state, self._targets),
            "counts": dict(self._counts),
            "decisions": self._decisions,
        }
        self._writer.submit(self._facts.put, KIND, self._model, fact)


def readings(context: Context) -> tuple[fleet.Reading, ...]:
    """The last report of each replica that is ready and has reported."""
    metrics = context.raw_metrics or {}
    found = []
    for replica in context.running_replicas:
        series = {name: metrics.get(name, {}).get(replica) for name in fleet.Reading._fields}
        if all(series.values()):
            last = {name: points[-1].value for name, points in series.items() if points}
            found.append(fleet.Reading(**last))
    return tuple(found)


def autoscaling_config(
    app: str, model: str, targets: fleet.Targets, initial_replicas: int
) -> dict[str, Any]:
    """Serve's autoscaling_config for a model.

    Delays are the policy's own: Serve carries out at once what it says.
    """
    fields = {name: getattr(targets, name) for name in targets.__dataclass_fields__}
    return {
        "min_replicas": targets.min_replicas,
        "max_replicas": targets.max_replicas,
        "initial_replicas": initial_replicas,
        "metrics_interval_s": REPORT_S,
        "look_back_period_s": LOOK_BACK_S,
        "upscale_delay_s": 0,
        "downscale_delay_s": 0,
        "downscale_to_zero_delay_s": 0,
        "policy": {
            "policy_function": f"{__name__}:{ServePolicy.__name__}",
            "policy_kwargs": {"app": app, "model": model, "targets": fields},
        },
    }


def quiet() -> None:
    """Keep Serve from warning of the report interval, which it has no other setting for."""
    warnings.filterwarnings("ignore", message="The `metrics_interval_s` field")
