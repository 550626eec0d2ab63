"""A configuration as a RayService, the resource that KubeRay makes a cluster of.

    head pod          GCS, dashboard, Serve's controller; no CPUs for replicas
    a worker group    a model: as many pods as its replicas need, each with the GPUs of a replica,
                      or of some of its stages where these are too many for a node; of a model
                      that scales, as many as Ray's autoscaler starts for it

Replicas and gateways find each other inside; clients come by the Service NAME-serve-svc.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import yaml

from .. import __version__
from ..engine.errors import ConfigError
from ..engine.seat import num_ranks
from .config import BUNDLED, Autoscaling, ModelConfig, ServeConfig, bundled_model, keys, model_keys
from .ray_variables import GCS_FOLDER, ON_EVERY_NODE, ON_THE_HEAD

WEIGHTS = "/weights"
"""Where the volume of weights is mounted; the hub's cache lies below it."""

API_KEY, HF_TOKEN = "api-key", "token"
"""The keys of the Secrets that hold them."""

_USER = 1000  # of the images in deploy/docker
_LONGEST_NAME = 40  # KubeRay adds to it, and a Service's name has 63 characters
_NOT_INSIDE = ("local", "ray_address", "api_key", "host", "port")  # of the settings to pass on

_Yaml = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a configuration does not say of the Kubernetes cluster that it goes to.

    `image` None is the one of deploy/docker; `cpus` and `memory` are of each worker pod.
    """

    image: str | None = None
    namespace: str | None = None
    service_type: str = "ClusterIP"
    api_key_secret: str | None = None
    hf_token_secret: str | None = None
    weights_claim: str | None = None
    cpus: int = 4
    memory: str = "16Gi"
    gpu_resource: str = "nvidia.com/gpu"
    gpus_per_node: int = 8
    cpu_only: bool = False


def rayservice(config: ServeConfig, target: Target) -> _Yaml:
    """The RayService of `config`. Raises ConfigError."""
    if config.api_key and not target.api_key_secret:
        raise ConfigError(
            "the configuration has an API key, which is not printed: put it into a Secret, "
            f"`kubectl create secret generic NAME --from-literal={API_KEY}=KEY`, and give "
            "--api-key-secret NAME",
            "api_key",
        )
    metadata = {"name": _label(config.name, _LONGEST_NAME)}
    if target.namespace:
        metadata["namespace"] = target.namespace
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": metadata,
        "spec": {
            "serveConfigV2": _dumped(_deployment(config, target)),
            "serveService": {
                "metadata": {"name": f"{metadata['name']}-serve-svc"},
                "spec": {
                    "type": target.service_type,
                    "ports": [{"name": "serve", "port": config.port, "targetPort": config.port}],
                },
            },
            "rayClusterConfig": {
                "rayVersion": version("ray"),
                "authOptions": {"mode": ON_EVERY_NODE["RAY_AUTH_MODE"]},
                **({"enableInTreeAutoscaling": True} if _scales(config) else {}),
                "headGroupSpec": {
                    "rayStartParams": {"num-cpus": "0", **_START},
                    "template": _head(config, target),
                },
                "workerGroupSpecs": list(_groups(config, target)),
            },
        },
    }


def text(resource: Mapping[str, Any]) -> str:
    """A resource as YAML, with texts of several lines as such."""
    return _dumped(resource)


def settings(config: ServeConfig) -> dict[str, object]:
    """The keys by which `serve_config` makes `config` again, without what holds outside only."""
    found = {
        name: getattr(config, name)
        for name in ServeConfig.model_fields
        if name in keys() and name not in _NOT_INSIDE
    }
    changed = _changed(found)
    if len(config.models) == 1:
        return _of_model(config.models[0]) | changed
    return changed | {"models": [_of_model(model) for model in config.models]}


def _deployment(config: ServeConfig, target: Target) -> _Yaml:
    """What `serve deploy` reads; clients come from other pods, so the door is open to all."""
    models = tuple(_placed(model, target) for model in config.models)
    args = settings(config.model_copy(update={"models": models})) | {
        "host": "0.0.0.0",
        "port": config.port,
    }
    return {
        "proxy_location": "Disabled",
        "applications": [
            {"name": config.name, "import_path": "shoal.cluster.app:build", "args": args}
        ],
    }


def _placed(model: ModelConfig, target: Target) -> ModelConfig:
    """A model whose replicas ask for a pod each: where the application is made, pods may not be
    there yet from which it would be seen what they have.
    """
    engine, asked = model.engine, dict(model.ray_actor_options or {})
    if on_gpus(model, target):
        engine = dataclasses.replace(engine, device="cuda")
        own: dict[str, float] = {"num_gpus": 1}
    else:
        own = {"num_cpus": target.cpus}
    if num_ranks(engine) == 1:
        asked = own | asked
    return model.model_copy(update={"engine": engine, "ray_actor_options": asked or None})


def _scales(config: ServeConfig) -> bool:
    """Whether pods come and go. Raises ConfigError where nothing says how many there may be."""
    for model in config.models:
        if model.autoscaling and model.autoscaling.max_replicas is None:
            raise ConfigError(
                f"{model.name} may have as many replicas as the cluster holds, and the cluster is "
                "made for them: give autoscaling.max_replicas",
                "autoscaling",
            )
    return any(model.autoscaling for model in config.models)


def _of_model(model: ModelConfig) -> dict[str, object]:
    values = {
        name: getattr(model if hasattr(model, name) else model.engine, name)
        for name in model_keys()
        if name not in ("model", "served_model_name")
    }
    path, names = model.engine.model, model.served_model_name
    shown = BUNDLED if path == str(bundled_model()) else path
    named = {} if names == (shown,) else {"served-model-name": list(names)}
    return {"model": shown, **named, **_changed(values)}


def _changed(values: Mapping[str, object]) -> dict[str, object]:
    """Those that are not as they would be anyway, under YAML's names."""
    return {
        name.replace("_", "-"): _plain(value)
        for name, value in values.items()
        if value != keys()[name].default
    }


def _plain(value: object) -> object:
    if isinstance(value, Autoscaling):
        return value.model_dump(exclude_defaults=True)
    return list(value) if isinstance(value, tuple) else value


_START = {"object-store-memory": str(128 << 20)}  # tokens never pass through it


def _head(config: ServeConfig, target: Target) -> _Yaml:
    size = {"cpu": "2", "memory": "4Gi"}
    container = _container("ray-head", config, target) | {
        "ports": [
            {"name": "gcs-server", "containerPort": 6379},
            {"name": "dashboard", "containerPort": 8265},
            {"name": "client", "containerPort": 10001},
            {"name": "serve", "containerPort": config.port},
        ],
        "resources": {"requests": size, "limits": size},
    }
    container["env"] += _variables(ON_THE_HEAD)
    container["volumeMounts"].append({"name": "gcs", "mountPath": GCS_FOLDER})
    # It outlives the container, which ends with the GCS and is then started again.
    return _pod(container, target, config, {"name": "gcs", "emptyDir": {}})


def _groups(config: ServeConfig, target: Target) -> Iterator[_Yaml]:
    taken: set[str] = set()
    for model in config.models:
        name = _label(model.name.rstrip("/").rpartition("/")[2], 32)
        name = next(n for n in (name, *(f"{name}-{i}" for i in range(2, 999))) if n not in taken)
        taken.add(name)
        gpus, pods = _gpus_and_pods(model, target)
        size: dict[str, object] = {"cpu": str(target.cpus), "memory": target.memory}
        gpu = {target.gpu_resource: str(gpus)} if gpus else {}
        container = _container("ray-worker", config, target) | {
            "ports": [{"name": "serve", "containerPort": config.port}],
            "resources": {"requests": size | gpu, "limits": size | gpu},
            "readinessProbe": _probe(config),
        }
        yield {
            "groupName": name,
            "replicas": model.replicas * pods,
            "minReplicas": model.least * pods,
            "maxReplicas": model.most * pods,
            "rayStartParams": dict(_START),
            "template": _pod(container, target, config),
        }


def _gpus_and_pods(model: ModelConfig, target: Target) -> tuple[int, int]:
    """GPUs of a pod and pods of a replica; stages stay whole where a node has room for one."""
    width = model.engine.tensor_parallel_size
    ranks = width * model.engine.pipeline_parallel_size
    if not on_gpus(model, target):
        return 0, 1
    most = target.gpus_per_node
    gpus = ranks if ranks <= most else width * (most // width) if width <= most else most
    return gpus, math.ceil(ranks / gpus)


def on_gpus(model: ModelConfig, target: Target) -> bool:
    """Whether the pods of `model` ask for GPUs: where nothing is said, all but the bundled do."""
    device = model.engine.device
    bundled = model.engine.model == str(bundled_model())
    return device == "cuda" or (device == "auto" and not bundled and not target.cpu_only)


def _container(name: str, config: ServeConfig, target: Target) -> _Yaml:
    kind = "cuda" if any(on_gpus(model, target) for model in config.models) else "cpu"
    env = _variables(ON_EVERY_NODE) + _variables({"HF_HOME": f"{WEIGHTS}/huggingface"})
    for variable, secret, key in (
        ("SHOAL_API_KEY", target.api_key_secret, API_KEY),
        ("HF_TOKEN", target.hf_token_secret, HF_TOKEN),
    ):
        if secret:
            source = {"secretKeyRef": {"name": secret, "key": key}}
            env.append({"name": variable, "valueFrom": source})
    return {
        "name": name,
        "image": target.image or f"shoal:{__version__}-{kind}",
        "env": env,
        "volumeMounts": [{"name": "weights", "mountPath": WEIGHTS}],
        # Out of the Service first, it ends once the streams that it holds had their time.
        "lifecycle": {
            "preStop": {"exec": {"command": ["sleep", str(math.ceil(config.shutdown_timeout))]}}
        },
    }


def _pod(container: _Yaml, target: Target, config: ServeConfig, *volumes: _Yaml) -> _Yaml:
    claim = {"persistentVolumeClaim": {"claimName": target.weights_claim}}
    weights = claim if target.weights_claim else {"emptyDir": {}}
    return {
        "spec": {
            "securityContext": {"runAsUser": _USER, "runAsNonRoot": True, "fsGroup": _USER},
            "terminationGracePeriodSeconds": math.ceil(config.shutdown_timeout) + 30,
            "containers": [container],
            "volumes": [{"name": "weights", **weights}, *volumes],
        }
    }


def _probe(config: ServeConfig) -> _Yaml:
    """In place of KubeRay's own, a wget of Serve's proxy: the gateway says it, where there is one.

    A pod without a gateway is not ready: its replicas work, and no client is sent to it.
    """
    scheme = {"scheme": "HTTPS"} if config.ssl_certfile else {}
    return {
        "httpGet": {"path": "/-/healthz", "port": "serve", **scheme},
        "periodSeconds": 5,
        "timeoutSeconds": 2,
        "failureThreshold": 1,
    }


def _variables(values: Mapping[str, str]) -> list[_Yaml]:
    return [{"name": name, "value": value} for name, value in values.items()]


def _label(name: str, longest: int) -> str:
    """`name` in the letters that Kubernetes takes."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower())[:longest].strip("-")
    return plain if plain[:1].isalpha() else f"m-{plain}"[:longest]


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as such, and repeats what stands at two places."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _represent(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = "|" if "\n" in value else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _represent)


def _dumped(value: Mapping[str, Any]) -> str:
    return yaml.dump(dict(value), Dumper=_Dumper, sort_keys=False, width=100)
