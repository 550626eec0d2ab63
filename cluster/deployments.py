"""What Serve is told of each deployment: places, scaling, versions, and how one replaces another.

A deployment whose settings have not changed keeps its version, and with it its replicas; how many
there are is not part of it. Where there is room a new replica starts before an old one drains.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve import Deployment
from ray.serve._private.config import DeploymentConfig
from ray.serve._private.constants import REPLICA_HEALTH_CHECK_UNHEALTHY_THRESHOLD
from ray.serve.exceptions import RayServeException

from .. import __version__
from ..engine.config import EngineConfig
from ..engine.seat import num_ranks
from . import placement, scaling_policy
from .config import Autoscaling, ModelConfig, ServeConfig
from .facts import Facts
from .fleet import Targets
from .handover import HAND_OVER_S
from .room import Room
from .shares import Share, is_on_gpu, kept, shares

SURGE_PERCENT = 1  # rounded up to a whole replica
SILENT_S = 10.0
LEAST_CHECK_S = 2.0
"""A machine that is busy may keep a health check waiting for so long."""
STOP_S = 10.0
"""What a process gets to end beside the time of its streams."""

OF_REPLICAS = ("name", "port", "log_dir", "uvicorn_log_level", "shutdown_timeout")
"""What of the door's settings a replica needs."""

OF_GATEWAYS = (
    *("model", "revision", "tokenizer", "tokenizer_revision", "download_dir", "chat_template"),
    *("seed", "scheduling_policy", "max_waiting"),
)
"""What of an engine's settings a gateway needs; the rest it is told by replicas."""


class _Versioned(DeploymentConfig):
    """Keeps its version: `serve deploy` gives every deployment that of the whole file, and so would
    load each model anew that did not change.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "version" or self.version is None:
            super().__setattr__(name, value)


LABEL_S = 0.001
"""What Ray takes of a node's `accelerator_type:...` resource for asking for it."""


def deployment_names(models: Sequence[ModelConfig]) -> list[str]:
    """What Serve calls each model: its name in letters that Serve takes, no two alike."""
    taken = {"Gateway"}
    names = []
    for model in models:
        last = model.name.rstrip("/").rpartition("/")[2]
        plain = re.sub(r"[^\w.-]", "-", last, flags=re.ASCII) or "model"
        name = next(n for n in (plain, *(f"{plain}-{i}" for i in range(2, 999))) if n not in taken)
        taken.add(name)
        names.append(name)
    return names


def bounded(config: ServeConfig) -> ServeConfig:
    """The configuration with a `max_replicas` for every model that scales.

    Those without one may have what the resources there hold beside the models of fixed size.
    """
    there = resources()
    fixed = [m for m in config.models if m.autoscaling is None]

    def most(model: ModelConfig) -> ModelConfig:
        if model.autoscaling is None or model.autoscaling.max_replicas is not None:
            return model
        kind = "GPU" if is_on_gpu(model, there.get("GPU", 0)) else "CPU"
        taken = sum(m.replicas * _units(m, kind, there) for m in fixed)
        held = int((there.get(kind, 1) - taken) // _units(model, kind, there))
        bounds = model.autoscaling.model_copy(
            update={"max_replicas": max(held, model.replicas, model.least)}
        )
        return model.model_copy(update={"autoscaling": bounds})

    return config.model_copy(update={"models": tuple(map(most, config.models))})


def _units(model: ModelConfig, kind: str, there: Mapping[str, float]) -> float:
    """How many GPUs, or CPUs, a replica should have for itself."""
    if ("GPU" if is_on_gpu(model, there.get("GPU", 0)) else "CPU") != kind:
        return 0
    asked = (model.ray_actor_options or {}).get(f"num_{kind.lower()}s")
    return float(asked) if asked and num_ranks(model.engine) == 1 else num_ranks(model.engine)


def resources() -> dict[str, float]:
    """What the cluster has, of each kind."""
    return dict(ray.cluster_resources()) if ray.is_initialized() else {}


def num_nodes() -> int:
    """Nodes of the cluster."""
    return sum(node["Alive"] for node in ray.nodes()) if ray.is_initialized() else 1


def shares_of(config: ServeConfig, names: Sequence[str]) -> list[Share]:
    """The share of a replica of each model, by the names of their deployments.

    A model whose own settings have not changed keeps what its replicas have, where it can, so that
    they outlive what is added and removed beside them.
    """
    there, nodes = resources(), num_nodes()
    fresh = shares(
        config.models,
        num_gpus=there.get("GPU", 0),
        num_nodes=nodes,
        cpus_a_node=there.get("CPU", 1) / nodes,
    )
    if not ray.is_initialized():
        return fresh
    told = Facts(config.name).all("share")
    before = [
        Share(*fact["share"]) if fact and fact["of"] == _own(config, model) else None
        for fact, model in zip(map(told.get, names), config.models, strict=True)
    ]
    return kept(fresh, before, [model.most for model in config.models], there)


def state_shares(
    config: ServeConfig, every: Sequence[Mapping[str, Any]], found: Sequence[Share]
) -> None:
    """State the share of each model, whose options `every` are, for the next configuration of the
    application; forget what was said of those that are gone, or decided for those that scale no
    more.
    """
    if not ray.is_initialized():
        return
    facts = Facts(config.name)
    for model, options, share in zip(config.models, every, found, strict=True):
        told = {
            "of": _own(config, model),
            "share": share,
            "version": options["version"],
            "names": model.served_model_name,
            "placement_timeout": config.placement_timeout,
            "gone": 0,
        }
        facts.put("share", options["name"], told)
    for gone in facts.all("share").keys() - {options["name"] for options in every}:
        facts.remove("share", gone)
    scaling = {model.name for model in config.models if model.autoscaling}
    for gone in facts.all(scaling_policy.KIND).keys() - scaling:
        facts.remove(scaling_policy.KIND, gone)


def _own(config: ServeConfig, model: ModelConfig) -> str:
    """Stands for a model's own settings, before it has a share."""
    return _version(replica_settings(config, model))


def versioned(deployment: Deployment) -> Deployment:
    """The deployment, which keeps the version in its options however it is deployed."""
    deployment._deployment_config.version = deployment.version
    deployment._deployment_config.__class__ = _Versioned
    return deployment


def replica_options(config: ServeConfig, model: ModelConfig, name: str, share: Share) -> Any:
    """Serve's options of a model's deployment, for one whose `max_replicas` is known."""
    places = _places(model, share)
    options: dict[str, Any] = {"name": name, **places}
    if model.autoscaling is None:
        options["num_replicas"] = model.replicas
    else:
        scaling_policy.quiet()
        options["autoscaling_config"] = scaling_policy.autoscaling_config(
            config.name, model.name, targets(model), _initial(config, model, name)
        )
    options["max_surge_percent"] = 0
    # One that did not scale when it was started would never report to the policy.
    scales = {"scales": model.autoscaling is not None}
    options["version"] = _version(scales | replica_settings(config, model))
    options["health_check_timeout_s"] = health_check_s(model.engine.stall_timeout)
    return options


def let_surge(app: str, every: Sequence[dict[str, Any]]) -> None:
    """Let models that are replaced have a replica more meanwhile, as far as there is room for it
    beside the replicas that come to those there are. `every`: the options of all models.
    """
    if not ray.is_initialized():
        return
    room, there, told = Room.now(), running(app), Facts(app).all("share")
    for options in every:
        scaling = options.get("autoscaling_config") or {}
        wanted = options.get("num_replicas") or scaling.get("initial_replicas", 0)
        for _ in range(wanted - there.get(options["name"], 0)):
            room.take(_bundles(options))
    for options in sorted(
        every, key=lambda o: told.get(o["name"], {}).get("version") == o["version"]
    ):
        if options["name"] in there and room.take(_bundles(options)):
            options["max_surge_percent"] = SURGE_PERCENT


def health_check_s(stall_s: float = 0) -> float:
    """How long Serve waits for an answer, so that a process that gives none is replaced after
    about `stall_s` (0: a time of its own): Serve believes only some that fail in a row.
    """
    return max(LEAST_CHECK_S, (stall_s or SILENT_S) / REPLICA_HEALTH_CHECK_UNHEALTHY_THRESHOLD)


def replica_settings(config: ServeConfig, model: ModelConfig) -> dict[str, Any]:
    """What a replica is made of; nothing that changes while it runs."""
    alone = ModelConfig(
        engine=model.engine,
        served_model_name=model.served_model_name,
        accelerator_type=model.accelerator_type,
        resources=model.resources,
        ray_actor_options=model.ray_actor_options,
        placement_strategy=model.placement_strategy,
    )
    door = {name: getattr(config, name) for name in OF_REPLICAS}
    return ServeConfig(models=(alone,), **door).model_dump(mode="json")


def gateway_options(
    config: ServeConfig, versions: Sequence[str], num_nodes: int, door: str | None
) -> dict[str, Any]:
    """Serve's options of the gateways, an only one of which is on node `door`.

    Which replicas of each model they expect, and how many, changes without a restart; `versions`
    are those of the models.
    """
    told = list(zip(config.models, versions, strict=True))
    expected = {
        "least": {model.name: model.least for model in config.models},
        "versions": {name: version for model, version in told for name in model.served_model_name},
    }
    apart = 1 < config.gateways <= num_nodes
    return {
        "name": "Gateway",
        "num_replicas": config.gateways,
        "max_replicas_per_node": 1 if apart else None,
        "ray_actor_options": {"num_cpus": 0} | _only_at(door if config.gateways == 1 else None),
        "max_surge_percent": 0 if apart else SURGE_PERCENT,
        "graceful_shutdown_timeout_s": HAND_OVER_S + config.shutdown_timeout + STOP_S,
        "user_config": expected,
        "version": _version(gateway_settings(config)),
    }


def gateway_settings(config: ServeConfig) -> dict[str, Any]:
    """What a gateway is made of."""
    models = tuple(map(_seen_from_gateways, config.models))
    return config.model_copy(update={"models": models, "gateways": 1}).model_dump(mode="json")


def _seen_from_gateways(model: ModelConfig) -> ModelConfig:
    """A model without what changes nothing at the door."""
    asleep_s = model.autoscaling and model.autoscaling.cold_start_timeout_s
    bounds = {"min_replicas": 0, "cold_start_timeout_s": asleep_s}
    engine = {name: getattr(model.engine, name) for name in OF_GATEWAYS}
    return ModelConfig(
        engine=EngineConfig(**engine),
        served_model_name=model.served_model_name,
        response_role=model.response_role,
        autoscaling=Autoscaling.model_validate(bounds) if asleep_s else None,
    )


def _only_at(node: str | None) -> dict[str, Any]:
    """What keeps an actor on a node: clients of an only gateway know where it is."""
    return {"resources": {f"node:{node}": LABEL_S}} if node else {}


def targets(model: ModelConfig) -> Targets:
    """What the policy is told."""
    assert model.autoscaling is not None
    given = model.autoscaling.model_dump(exclude={"cold_start_timeout_s"})
    return Targets(**given)


def _version(settings: Mapping[str, Any]) -> str:
    text = json.dumps([__version__, settings], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=10).hexdigest()


def _initial(config: ServeConfig, model: ModelConfig, name: str) -> int:
    """How many replicas to begin with: those there are where the application runs already."""
    assert model.autoscaling is not None
    there = running(config.name).get(name, 0)
    return min(max(there or model.replicas, model.least), model.autoscaling.max_replicas or there)


def running(app: str) -> dict[str, int]:
    """The replicas that run, by deployment; empty where there is no such application."""
    if not ray.is_initialized():
        return {}
    try:
        overview = serve.status().applications.get(app)
    except (RayError, RayServeException):
        return {}
    if overview is None:
        return {}
    return {
        name: sum(num for state, num in status.replica_states.items() if state == "RUNNING")
        for name, status in overview.deployments.items()
    }


def _places(model: ModelConfig, share: Share) -> dict[str, Any]:
    """What Serve sets aside for a replica: its own place, and one a stage where it has ranks."""
    asked = dict(model.ray_actor_options or {})
    if num_ranks(model.engine) > 1:
        extra = dict(model.resources or {})
        if model.accelerator_type:
            extra[f"accelerator_type:{model.accelerator_type}"] = LABEL_S
        strategy = model.placement_strategy
        ranks = placement.bundles(model.engine, bool(share.num_gpus), strategy)
        bundles = placement.with_control([bundle | extra for bundle in ranks], strategy)
        return {
            "ray_actor_options": asked | {"num_cpus": placement.CONTROL["CPU"], "num_gpus": 0},
            "placement_group_bundles": bundles,
            "placement_group_strategy": strategy,
        }
    options: dict[str, Any] = {"num_cpus": share.num_cpus}
    if share.num_gpus:
        options["num_gpus"] = share.num_gpus
    if model.accelerator_type:
        options["accelerator_type"] = model.accelerator_type
    if model.resources:
        options["resources"] = model.resources
    return {"ray_actor_options": options | asked}


def bundles_of(model: ModelConfig, share: Share) -> list[Mapping[str, float]]:
    """What a replica asks of the cluster: a bundle, or several, each of one node."""
    return _bundles(_places(model, share))


def _bundles(places: Mapping[str, Any]) -> list[Mapping[str, float]]:
    asked: list[Mapping[str, float]] | None = places.get("placement_group_bundles")
    return asked or [_asked(places["ray_actor_options"])]


_BY_NAME = {"GPU": "num_gpus", "memory": "memory"}


def _asked(options: Mapping[str, Any]) -> dict[str, float]:
    found = {"CPU": options.get("num_cpus", 0)}
    found |= {key: options[name] for key, name in _BY_NAME.items() if options.get(name)}
    if kind := options.get("accelerator_type"):
        found[f"accelerator_type:{kind}"] = LABEL_S
    return found | dict(options.get("resources", {}))
