"""What a cluster is told: its models, each with an engine's keys, and the door before them.

A key is a YAML key and, with dashes, a flag of `shoal serve`; `settings.py` reads them.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..engine.config import EngineConfig
from ..engine.errors import ConfigError

ACTOR_OPTIONS = ("num_cpus", "num_gpus", "memory", "runtime_env", "label_selector")
"""What `ray_actor_options` may set; `resources` and `accelerator_type` are keys of their own."""

BUNDLED = "shoal-tiny"
"""The name of the bundled model, which is served where no other is asked for."""

SECRET = ("api_key", "hf_token")
"""Keys whose values are never shown."""

Schema = TypeVar("Schema", bound=BaseModel)


def option(default: Any, help: str, *, group: str, first: bool = False, **bounds: Any) -> Any:
    """A field with what flags and documentation show of it, like `setting` of the engine."""
    extra: dict[str, Any] = {"group": group, "first": first}
    return Field(default, description=help, json_schema_extra=extra, **bounds)


class Autoscaling(BaseModel):
    """How a model's replicas follow its load. What one sustains is learned, so nothing must be set.

    `max_replicas` None: as many as the cluster's resources hold. A load beyond `target_load`, 1
    being what replicas sustain, or past any other target asks for more of them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_replicas: int = Field(1, ge=0)
    max_replicas: int | None = Field(None, ge=1)
    target_load: float = Field(1.0, gt=0)
    target_kv_usage: float = Field(0.85, gt=0, le=1)
    target_queue_s: float = Field(1.0, gt=0)
    target_ttft_s: float | None = Field(None, gt=0)
    target_time_per_token_s: float | None = Field(None, gt=0)
    scale_down_after_s: float = Field(60.0, ge=0)
    scale_to_zero_after_s: float = Field(300.0, ge=0)
    cold_start_timeout_s: float = Field(120.0, gt=0)


class ModelConfig(BaseModel):
    """One model of an application: its engine, its names, how many copies.

    `served_model_name` has a name at least: the first is answered with, and `name` is it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    engine: EngineConfig

    served_model_name: tuple[str, ...] = option(
        (), "Names that requests call the model by (default: MODEL).", group="Server", first=True
    )
    response_role: str = option("assistant", "Role that chat answers carry.", group="Server")
    replicas: int = option(
        1,
        "Copies of the model that share the requests; `auto` follows the load, from 1 to what the "
        "cluster holds.",
        group="Cluster",
        first=True,
        ge=1,
    )
    autoscaling: Autoscaling | None = option(
        None,
        "How the replicas follow the load: min_replicas, max_replicas, targets (see "
        "configs/SETTINGS.md).",
        group="Cluster",
    )
    accelerator_type: str | None = option(
        None, "Accelerator that a node of the model must have, as Ray calls it.", group="Cluster"
    )
    resources: dict[str, float] | None = option(
        None, "Custom Ray resources that a replica takes, by name.", group="Cluster"
    )
    ray_actor_options: dict[str, Any] | None = option(
        None,
        "More options of a replica's Ray actor: num_cpus, num_gpus, memory, runtime_env, "
        "label_selector.",
        group="Cluster",
    )
    placement_strategy: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = option(
        "PACK",
        "How Ray places the stages of a replica of several ranks on nodes: close together, or "
        "spread out.",
        group="Cluster",
    )

    @property
    def least(self) -> int:
        """The fewest replicas there may be."""
        return self.autoscaling.min_replicas if self.autoscaling else self.replicas

    @property
    def most(self) -> int:
        """The most replicas there may be; where no bound is known, those it begins with."""
        bound = self.autoscaling.max_replicas if self.autoscaling else None
        return bound or self.replicas

    @property
    def name(self) -> str:
        """What the model is called wherever one name must do."""
        return self.served_model_name[0]


class ServeConfig(BaseModel):
    """One application: its models and the door before them.

    Make one with `serve_config`: there is a model then, and no two have a served name in common.
    Paths are as given; `log_dir` None means the default of `cluster/logs.py`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    models: tuple[ModelConfig, ...]

    host: str = option(
        "127.0.0.1", "Address to listen on; 0.0.0.0 for all.", group="Server", first=True
    )
    port: int = option(8000, "Port to listen on.", group="Server", first=True, ge=1, le=65535)
    api_key: tuple[str, ...] = option(
        (), "Key that requests must carry; may be repeated.", group="Server", first=True, repr=False
    )
    max_body_bytes: int = option(
        32 * 2**20, "Longest request body, in bytes; a longer one gets 413.", group="Server", ge=1
    )
    shutdown_timeout: float = option(
        30.0, "Seconds that running streams may take to end on Ctrl-C.", group="Server", ge=0
    )
    root_path: str = option(
        "",
        "Path below which a proxy in front shows the server; requests may come with or without it.",
        group="Server",
    )
    disable_fastapi_docs: bool = option(
        False, "Serve neither /docs nor /openapi.json.", group="Server"
    )
    ssl_keyfile: str | None = option(None, "TLS key file; serves https.", group="Server")
    ssl_certfile: str | None = option(None, "TLS certificate file.", group="Server")
    allowed_origins: tuple[str, ...] = option(
        (), "Origins that browsers may call from (CORS); * for any.", group="Server"
    )
    allowed_methods: tuple[str, ...] = option(("*",), "Methods for CORS.", group="Server")
    allowed_headers: tuple[str, ...] = option(("*",), "Headers for CORS.", group="Server")
    allow_credentials: bool = option(False, "Allow credentials for CORS.", group="Server")

    local: bool = option(
        False, "Serve from this process alone, without Ray.", group="Cluster", first=True
    )
    gateways: int = option(1, "HTTP front ends, one a node.", group="Cluster", ge=1)
    name: str = option("shoal", "Name of the Ray Serve application.", group="Cluster")
    placement_timeout: float = option(
        60.0,
        "Seconds that replicas may wait for a place on the cluster's nodes; longer where nodes "
        "are started on demand.",
        group="Cluster",
        gt=0,
    )
    failover_timeout: float = option(
        60.0,
        "Seconds that a stream whose replica is lost may wait for another one, or for a stalled "
        "one to get on.",
        group="Cluster",
        ge=0,
    )
    max_failovers: int = option(
        8, "Deaths and stalls of engines that one stream may outlive.", group="Cluster", ge=0
    )
    drain_grace: float = option(
        0.5,
        "Seconds that streams stay on a replica that is being stopped before they move to others.",
        group="Cluster",
        ge=0,
    )
    ray_address: str | None = option(
        None, "Ray cluster to join (default: RAY_ADDRESS, or an own one).", group="Cluster"
    )

    log_requests: bool = option(
        False, "Log each request with its prompt and parameters.", group="Logs"
    )
    max_log_len: int | None = option(
        None, "Most characters of a prompt in the log (default: all).", group="Logs", ge=0
    )
    log_dir: str | None = option(
        None, "Folder of the logs (default: one for each name and port).", group="Logs"
    )
    vllm_metrics: bool = option(
        False, "Show figures on /metrics under vLLM's names too.", group="Logs"
    )
    uvicorn_log_level: Literal["critical", "error", "warning", "info", "debug", "trace"] = option(
        "info", "Least level that is logged.", group="Logs"
    )

    @property
    def url(self) -> str:
        """Where a client on this machine reaches the door."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(self.host, self.host)
        scheme = "https" if self.ssl_certfile else "http"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self.port}{self.root_path}"

    def model(self, name: str) -> ModelConfig:
        """The model of a served name. Raises KeyError."""
        for model in self.models:
            if name in model.served_model_name:
                return model
        raise KeyError(name)

    def of(self, model: ModelConfig) -> ServeConfig:
        """The same application with this model alone."""
        return self.model_copy(update={"models": (model,)})


class Key(NamedTuple):
    """One setting, as flags, YAML and documentation see it; `kind` is its annotation."""

    name: str
    kind: Any
    default: object
    help: str
    group: str
    first: bool


def keys() -> Mapping[str, Key]:
    """Every setting there is but `models`: the engine's, a model's other ones, the server's."""
    return _keys()


def model_keys() -> Mapping[str, Key]:
    """The settings that an item of `models` may have."""
    return {name: key for name, key in keys().items() if name not in ServeConfig.model_fields}


@cache
def _keys() -> dict[str, Key]:
    found = (*_engine_keys(), *_fields(ModelConfig), *_fields(ServeConfig))
    return {key.name: key for key in found}


def _engine_keys() -> Iterator[Key]:
    kinds = typing.get_type_hints(EngineConfig)
    for field in dataclasses.fields(EngineConfig):
        yield Key(field.name, kinds[field.name], field.default, **field.metadata)


def _fields(schema: type[BaseModel]) -> Iterator[Key]:
    kinds = typing.get_type_hints(schema)
    for name, field in schema.model_fields.items():
        if field.json_schema_extra:
            extra = typing.cast(dict[str, Any], field.json_schema_extra)
            yield Key(name, kinds[name], field.default, help=field.description or "", **extra)


def bundled_model() -> Path:
    """The folder of the model that comes with the package."""
    return Path(__file__).resolve().parent.parent / "configs" / "tiny"


def validated(schema: type[Schema], values: Mapping[str, object], at: str = "") -> Schema:
    """A `schema` of these values. Raises ConfigError naming the field that is refused.

    `at`: the key that holds them all.
    """
    try:
        return schema(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        path = ".".join(map(str, filter(None, (at, *first["loc"]))))
        if first["type"] == "extra_forbidden":
            known = ", ".join(schema.model_fields)
            raise ConfigError(f"{path} is unknown; there are {known}", at or name) from None
        said = first["msg"].removeprefix("Input ")
        raise ConfigError(f"{path} {said}, got {first['input']!r}", at or name) from None


def warnings(config: ServeConfig) -> list[str]:
    """What an operator should know of a configuration that is allowed."""
    found = []
    if config.host not in ("127.0.0.1", "localhost", "::1") and not config.api_key:
        found.append(
            f"{config.host}:{config.port} is open to the network and no API key is set; "
            "give --api-key or SHOAL_API_KEY"
        )
    return found
