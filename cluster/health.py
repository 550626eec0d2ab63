"""The words in which a router says how its models are: loading, ready, degraded, down."""

from __future__ import annotations

from collections.abc import Collection


def of_model(able: int, wanted: int, seen: bool) -> str:
    """loading, ready, degraded (fewer replicas than wanted) or down.

    One that may have none is ready without, once it was seen: a request brings it back.
    `able`: replicas that take requests; `seen`: whether there was one before.
    """
    if able >= wanted and (able or seen):
        return "ready"
    if able:
        return "degraded"
    return "down" if seen else "loading"


def of_all(states: Collection[str]) -> str:
    """ready where every model is; degraded where some requests are answered and others are not."""
    if all(state == "ready" for state in states):
        return "ready"
    if any(state in ("ready", "degraded") for state in states):
        return "degraded"
    return "loading" if "loading" in states else "down"
