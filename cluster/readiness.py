"""When an application serves, and what keeps it from it."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable
from typing import Any

from ray import serve
from ray.serve.schema import ApplicationStatus

from ..engine.errors import ConfigError, EngineLost
from ..engine.seat import num_ranks
from . import placement, rollout
from .banner import Loaded, Progress
from .config import ServeConfig
from .deployments import bundles_of, deployment_names, shares_of
from .direct import direct_opener
from .facts import Facts, weights_read
from .link import ModelCard
from .shares import shared

POLL_S = 0.1


def await_ready(
    config: ServeConfig,
    stop: threading.Event,
    progress: Progress,
    look: Callable[[], None] | None = None,
) -> None:
    """Wait until the gateway says that it is ready. Raises what kept a replica from starting."""
    facts = Facts(config.name)
    until = time.monotonic() + config.placement_timeout
    while not stop.wait(POLL_S):
        if time.monotonic() > until:
            _check_placed(config, facts)
            until = math.inf
        if error := facts.failure(named=len(config.models) > 1):
            raise error
        if look is not None:
            look()
        progress.advance(*weights_read(facts))
        overview = serve.status().applications.get(config.name)
        if overview is None:
            raise EngineLost(f"{config.name} was taken off its Ray before it was ready")
        if rollout.is_through(overview) and _health(config) == "ready":
            return
        if overview.status is ApplicationStatus.DEPLOY_FAILED:
            raise EngineLost(f"Ray Serve could not start it: {_last_line(overview.message)}")


def _check_placed(config: ServeConfig, facts: Facts) -> None:
    """Raise ConfigError for a model none of whose replicas has found a place."""
    placed = {fact["model"] for fact in facts.all("replica").values()}
    names = deployment_names(config.models)
    for model, share in zip(config.models, shares_of(config, names), strict=True):
        if model.name not in placed:
            ranks = num_ranks(model.engine)
            asked = bundles_of(shared(model, share.sharers), share)
            raise ConfigError(
                f"{model.name}: no place for a replica of {ranks} rank{'s'[: ranks > 1]} within "
                f"{config.placement_timeout:g} s: {placement.shortage(asked)}. Free some, add "
                f"nodes, lower tensor_parallel_size or pipeline_parallel_size, or raise "
                f"placement_timeout where nodes are started on demand",
                "tensor_parallel_size",
            )


def _last_line(message: str) -> str:
    lines = [line for line in message.splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it gives no reason"


def _health(config: ServeConfig) -> str | None:
    """What a gateway, here or elsewhere, says of the cluster; None while none answers."""
    ways = [f"{config.url}/health"]
    for fact in Facts(config.name).all("gateway").values():
        if "port" in fact:
            host = f"[{fact['host']}]" if ":" in fact["host"] else fact["host"]
            ways.append(f"http://{host}:{fact['port']}/health")
    opener = direct_opener()
    for url in ways:
        try:
            with opener.open(url, timeout=2) as answer:
                return str(json.load(answer)["status"])
        except (OSError, ValueError):
            continue
    return None


def loaded(config: ServeConfig) -> list[Loaded]:
    """What the first ready replica of each model states."""
    facts: dict[object, Any] = {}
    for fact in Facts(config.name).all("replica").values():
        if fact["phase"] == "ready":
            facts.setdefault(fact["model"], fact)
    found = [facts[model.name] for model in config.models]
    return [Loaded(ModelCard(**f["card"]), f["table"], f["phases"]) for f in found]
