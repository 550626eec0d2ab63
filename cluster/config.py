"""What a cluster is told: the engine's keys and the server's, flat, under vLLM's names.

A key is a YAML key and, with dashes, a flag of `shoal serve`. Where several places set one, the
command line wins, then the YAML file, then the environment.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import typing
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..engine import config as engine_config
from ..engine.config import EngineConfig
from ..engine.errors import ConfigError
from .names import CHANGES_NOTHING, NOT_BUILT, RENAMED
from .values import convert

BUNDLED = "shoal-tiny"
"""The name of the bundled model, which is served where no other is asked for."""

ENVIRONMENT = {
    "api_key": ("SHOAL_API_KEY", "VLLM_API_KEY"),
    "log_dir": ("SHOAL_LOG_DIR",),
}
"""Keys that the environment may set, by variables of which the first one set counts; several API
keys are parted by commas."""


def option(default: Any, help: str, *, group: str, first: bool = False, **bounds: Any) -> Any:
    """A field with what flags and documentation show of it, like `setting` of the engine."""
    extra: dict[str, Any] = {"group": group, "first": first}
    return Field(default, description=help, json_schema_extra=extra, **bounds)


class ServeConfig(BaseModel):
    """One application: an engine's configuration, how many of it, and the door before them.

    Make one with `serve_config`. `served_model_name` is never empty then: the first is answered
    with. Paths are as given; `log_dir` None means the default of `cluster/logs.py`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    engine: EngineConfig

    served_model_name: tuple[str, ...] = option(
        (), "Names that requests call the model by (default: MODEL).", group="Server", first=True
    )
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
    root_path: str = option("", "Path that a proxy in front strips from requests.", group="Server")
    response_role: str = option("assistant", "Role that chat answers carry.", group="Server")
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
    replicas: int = option(
        1, "Copies of the model that share the requests.", group="Cluster", first=True, ge=1
    )
    gateways: int = option(1, "HTTP front ends, one a node.", group="Cluster", ge=1)
    name: str = option("shoal", "Name of the Ray Serve application.", group="Cluster")
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
    uvicorn_log_level: Literal["critical", "error", "warning", "info", "debug", "trace"] = option(
        "info", "Least level that is logged.", group="Logs"
    )

    @property
    def url(self) -> str:
        """Where a client on this machine reaches the door."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(self.host, self.host)
        scheme = "https" if self.ssl_certfile else "http"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self.port}{self.root_path}"


class Key(NamedTuple):
    """One setting, as flags, YAML and documentation see it; `kind` is its annotation."""

    name: str
    kind: Any
    default: object
    help: str
    group: str
    first: bool


def keys() -> Mapping[str, Key]:
    """Every setting there is: the engine's, then the server's."""
    return _keys()


@cache
def _keys() -> dict[str, Key]:
    return {key.name: key for key in (*_engine_keys(), *_server_keys())}


def _engine_keys() -> Iterator[Key]:
    kinds = typing.get_type_hints(EngineConfig)
    for field in dataclasses.fields(EngineConfig):
        yield Key(field.name, kinds[field.name], field.default, **field.metadata)


def _server_keys() -> Iterator[Key]:
    kinds = typing.get_type_hints(ServeConfig)
    for name, field in ServeConfig.model_fields.items():
        if name != "engine":
            extra = typing.cast(dict[str, Any], field.json_schema_extra)
            yield Key(name, kinds[name], field.default, help=field.description or "", **extra)


def bundled_model() -> Path:
    """The folder of the model that comes with the package."""
    return Path(__file__).resolve().parent.parent / "configs" / "tiny"


def serve_config(
    settings: Mapping[str, object], environ: Mapping[str, str] = os.environ
) -> ServeConfig:
    """A ServeConfig from flat keys: `max_model_len`, `max-model-len` or `--max-model-len`.

    Values may be text. Raises ConfigError, whose `key` is the key as it was given.
    """
    given: dict[str, object] = {}
    written: dict[str, str] = {}
    for raw, value in settings.items():
        name = target(raw)
        held = _held(raw, name, value)
        if name not in keys():
            continue
        if name in written:
            raise ConfigError(f"{raw} and {written[name]} set the same thing; keep one", raw)
        written[name] = raw
        given[name] = held
    for name, value in _from_environment(environ).items():
        given.setdefault(name, value)
    try:
        return _build(given)
    except ConfigError as error:
        raise ConfigError(error.message, written.get(error.key or "", error.key)) from None


def plain(raw: str) -> str:
    """A key without a flag's dashes."""
    return raw.lstrip("-").replace("-", "_")


def target(raw: str) -> str:
    """The key that `raw` sets; itself where it is no other name of one."""
    return RENAMED.get(plain(raw), plain(raw)).lstrip("!")


def _held(raw: str, name: str, value: object) -> object:
    """The value that `raw` gives to `name`."""
    if plain(raw) in CHANGES_NOTHING:
        return converted(raw, value, bool)
    if plain(raw) in NOT_BUILT:
        refuse_unbuilt(raw, value)
        return None
    if name not in keys():
        near = nearest(raw)
        hint = f"; did you mean {near!r}?" if near else ""
        raise ConfigError(f"unknown setting {raw!r}{hint}", raw)
    if name == "max_model_len" and value in ("auto", -1, "-1"):
        raise ConfigError(
            f"{raw}={value} cannot be kept: choosing the longest that fits is not built yet. "
            "Leave it out for the model's own, or give a number",
            raw,
        )
    if RENAMED.get(plain(raw), "").startswith("!"):
        return not converted(raw, value, bool)
    return converted(raw, value, keys()[name].kind)


def nearest(raw: str) -> str | None:
    """The known key most like `raw`, in its style of dashes."""
    known = [*keys(), *RENAMED, *CHANGES_NOTHING, *NOT_BUILT]
    near = difflib.get_close_matches(plain(raw), known, n=1, cutoff=0.6)
    if not near:
        return None
    dashed = near[0].replace("_", "-")
    return f"--{dashed}" if raw.startswith("--") else dashed if "-" in raw else near[0]


def refuse_unbuilt(raw: str, value: object) -> None:
    """Raise ConfigError unless `value`, which may be text, leaves the unbuilt feature off."""
    off, reason = NOT_BUILT[plain(raw)]
    if value is not None and str(value).lower() not in ("none", str(off).lower()):
        shown = "" if value is True else f" {value}" if raw.startswith("--") else f": {value}"
        raise ConfigError(f"`{raw}{shown}` cannot be kept: {reason}. Remove it to go on", raw)


def converted(raw: str, value: object, kind: Any) -> object:
    """`value` as the annotation `kind` wants it. Raises ConfigError naming `raw`."""
    try:
        return convert(value, kind)
    except ValueError as error:
        raise ConfigError(f"{raw} is {value!r}; expected {error}", raw) from None


def _from_environment(environ: Mapping[str, str]) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, variables in ENVIRONMENT.items():
        value = next((environ[v] for v in variables if environ.get(v)), None)
        if value is not None:
            found[name] = tuple(filter(None, value.split(","))) if name == "api_key" else value
    return found


def _build(given: dict[str, object]) -> ServeConfig:
    if not given.get("model") or given["model"] == BUNDLED:
        given |= {"model": str(bundled_model())}
        given.setdefault("served_model_name", (BUNDLED,))
    given["served_model_name"] = given.get("served_model_name") or (given["model"],)
    given.setdefault("memory_sharers", given.get("replicas") or 1)
    names = engine_config.engine_keys()
    _check(given)
    engine = EngineConfig(**{k: v for k, v in given.items() if k in names})  # type: ignore[arg-type]
    try:
        return ServeConfig(
            engine=engine,
            **{k: v for k, v in given.items() if k not in names},  # type: ignore[arg-type]
        )
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        said = first["msg"].removeprefix("Input ")
        raise ConfigError(f"{name} {said}, got {given[name]!r}", name) from None


def _check(given: Mapping[str, object]) -> None:
    if bool(given.get("ssl_keyfile")) != bool(given.get("ssl_certfile")):
        key = "ssl_keyfile" if given.get("ssl_keyfile") else "ssl_certfile"
        raise ConfigError("ssl_keyfile and ssl_certfile go together: give both or neither", key)
    if given.get("local") and given.get("gateways", 1) != 1:
        raise ConfigError("gateways: --local has one gateway; leave one of the two out", "gateways")
    if given.get("local") and given.get("ray_address"):
        raise ConfigError("ray_address: --local needs no Ray; leave one of the two out", "local")


def warnings(config: ServeConfig) -> list[str]:
    """What an operator should know of a configuration that is allowed."""
    found = []
    if config.host not in ("127.0.0.1", "localhost", "::1") and not config.api_key:
        found.append(
            f"{config.host}:{config.port} is open to the network and no API key is set; "
            "give --api-key or SHOAL_API_KEY"
        )
    return found
