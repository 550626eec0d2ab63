"""What a cluster is told: the engine's keys and the server's, flat, under vLLM's names.

A key is a YAML key and, with dashes, a flag of `shoal serve`. Where several places set one, the
command line wins, then the YAML file, then the environment.
"""

from __future__ import annotations

import dataclasses
import os
import typing
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..engine import config as engine_config
from ..engine.config import EngineConfig, unknown_key
from ..engine.errors import ConfigError
from .values import convert

BUNDLED = "shoal-tiny"
"""The name of the bundled model, which is served where no other is asked for."""

ENVIRONMENT = {
    "api_key": ("SHOAL_API_KEY", "VLLM_API_KEY"),
    "log_dir": ("SHOAL_LOG_DIR",),
}
"""Keys that the environment may set, by variables of which the first one set counts; several API
keys are parted by commas."""

RENAMED: Mapping[str, str] = {
    "model_tag": "model",
    "enable_log_requests": "log_requests",
    "disable_log_requests": "!log_requests",
    "disable_async_scheduling": "!async_scheduling",
    "no_async_scheduling": "!async_scheduling",
}
"""Other names of a key; `!` turns true into false."""

CHANGES_NOTHING: Mapping[str, str] = {
    "disable_log_stats": "statistics are on /metrics, never in the log",
    "disable_uvicorn_access_log": "requests are logged only with --log-requests",
    "disable_access_log_for_endpoints": "requests are logged only with --log-requests",
    "enable_request_id_headers": "X-Request-Id is always answered",
    "enable_prompt_tokens_details": "cached prompt tokens are always counted in usage",
    "enable_offline_docs": "/docs never needs a network",
    "disable_frontend_multiprocessing": "gateways are made with --gateways N",
    "use_v2_block_manager": "there is one block manager",
    "use_tqdm_on_load": "loading always shows its progress",
    "disable_custom_all_reduce": "there is no such kernel to switch off",
    "max_parallel_loading_workers": "weights are read shard by shard, once",
}
"""Keys of vLLM that are taken and change nothing, and why."""

NOT_BUILT: Mapping[str, tuple[object, str]] = {
    **engine_config.NOT_BUILT,
    "uds": (None, "serving on a Unix socket is not built yet; use --host and --port"),
    "api_server_count": (1, "several front ends are made with --gateways N"),
    "headless": (False, "nodes join through Ray: `ray start --address=...`"),
    "middleware": (None, "code from elsewhere is not run inside the gateway"),
    "log_config_file": (None, "logging is set by --log-dir and --uvicorn-log-level"),
    "enable_log_outputs": (False, "answers are never logged"),
    "enable_server_load_tracking": (False, "the load is on /metrics"),
    "enable_force_include_usage": (False, "clients ask for it by stream_options.include_usage"),
    "enable_tokenizer_info_endpoint": (False, "that route is not built yet"),
    "return_tokens_as_token_ids": (False, "tokens as ids are not built yet"),
    "chat_template_content_format": ("auto", "the template's own form is always used"),
    "trust_request_chat_template": (False, "templates of callers are never run"),
    "default_chat_template_kwargs": (None, "default template arguments are not built yet"),
    "tool_parser_plugin": ("", "tool calls are not built yet"),
    "tool_server": (None, "tool calls are not built yet"),
    "exclude_tools_when_tool_choice_none": (False, "tool calls are not built yet"),
    "prompt_adapters": (None, "prompt adapters are not built"),
    "ssl_ca_certs": (None, "certificates of clients are not checked yet"),
    "ssl_cert_reqs": (0, "certificates of clients are not checked yet"),
    "ssl_ciphers": (None, "choosing ciphers is not built yet"),
    "enable_ssl_refresh": (False, "certificates are read once, at start"),
    "h11_max_incomplete_event_size": (4 * 2**20, "bodies are bounded by --max-body-bytes"),
    "h11_max_header_count": (256, "the header count is not adjustable"),
}
"""Keys of vLLM that are known and refused.

The value that changes nothing, and the reason in plain words.
"""


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
    """A ServeConfig from flat keys, with dashes or underscores; values may be text.

    Raises ConfigError, whose `key` is the key as it was given.
    """
    given: dict[str, object] = {}
    written: dict[str, str] = {}
    for raw, value in settings.items():
        name, value = _resolve(raw, value)
        if name is None:
            continue
        if name in written:
            raise ConfigError(f"{raw} and {written[name]} set the same thing; keep one", raw)
        written[name] = raw
        given[name] = value
    for name, value in _from_environment(environ).items():
        given.setdefault(name, value)
    try:
        return _build(given)
    except ConfigError as error:
        raise ConfigError(error.message, written.get(error.key or "", error.key)) from None


def _resolve(raw: str, value: object) -> tuple[str | None, object]:
    """The field a key means, or None where nothing follows from it, and its value."""
    name = raw.replace("-", "_")
    if name in RENAMED:
        target = RENAMED[name]
        if target.startswith("!"):
            return target[1:], not _converted(raw, value, bool)
        name = target
    if name in CHANGES_NOTHING:
        return None, value
    if name in NOT_BUILT:
        refuse_unbuilt(raw, value)
        return None, value
    if name not in keys():
        raise ConfigError(unknown_key(raw, known_names()), raw)
    if name == "max_model_len" and value in ("auto", -1, "-1"):
        raise ConfigError(
            f"max_model_len={value} cannot be kept: choosing the longest that fits is not built "
            "yet. Leave it out for the model's own, or give a number",
            raw,
        )
    return name, _converted(raw, value, keys()[name].kind)


def known_names() -> list[str]:
    """Every key that means something, be it only a refusal."""
    return [*keys(), *RENAMED, *CHANGES_NOTHING, *NOT_BUILT]


def refuse_unbuilt(raw: str, value: object) -> None:
    """Raise ConfigError unless `value`, which may be text, leaves the unbuilt feature off."""
    off, reason = NOT_BUILT[raw.replace("-", "_")]
    same = value is None or value == off or str(value).lower() in ("none", str(off).lower())
    if not same:
        shown = "" if value is True else f"={value}"
        raise ConfigError(f"{raw}{shown} cannot be kept: {reason}. Remove it to go on", raw)


def _converted(raw: str, value: object, kind: Any) -> object:
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
