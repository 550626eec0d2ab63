"""Flat keys, from a command line, a YAML file and the environment, to a ServeConfig.

Where several places set one, the command line wins, then the YAML file, then the environment. The
keys of one model stand flat; `models` lists several, and what stands flat beside it is the default
of all of them.
"""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

from ..engine import config as engine_config
from ..engine.config import EngineConfig
from ..engine.errors import ConfigError
from ..engine.seat import num_ranks
from .config import (
    ACTOR_OPTIONS,
    BUNDLED,
    SECRET,
    Autoscaling,
    ModelConfig,
    ServeConfig,
    bundled_model,
    keys,
    model_keys,
    validated,
)
from .environment import from_environment
from .names import IDLE, NOT_BUILT, RENAMED
from .values import convert, shown

MODELS = "models"
AUTO = "auto"
HIDDEN = "(not shown)"

SWITCHES = ("config", "detach", "print_config", "explain", "json", "debug")
"""Flags of the command line that are no settings."""


class _Given(NamedTuple):
    """The values of some keys, and each key as it was written."""

    values: dict[str, object]
    written: dict[str, str]


def serve_config(
    settings: Mapping[str, object], environ: Mapping[str, str] = os.environ
) -> ServeConfig:
    """A ServeConfig from flat keys: `max_model_len`, `max-model-len` or `--max-model-len`.

    Values may be text; `models` is a list of mappings. Raises ConfigError, whose `key` is the key
    as it was given, or `models[0].KEY` for one of an item.
    """
    given = _read({raw: value for raw, value in settings.items() if plain(raw) != MODELS})
    for name, (value, variable) in from_environment(environ).items():
        if name not in given.values:
            given.values[name] = converted(variable, value, keys()[name].kind)
            given.written[name] = variable
    listed = [value for raw, value in settings.items() if plain(raw) == MODELS]
    with _as_written(given.written):
        _check(given.values)
        models = _listed(listed[0], given) if listed else (_model(given.values),)
        door = {k: v for k, v in given.values.items() if k in ServeConfig.model_fields}
        if door.get("local"):
            _check_local(models)
        if door.get("local") and any(model.autoscaling for model in models):
            raise ConfigError(
                "autoscaling: --local has no replicas to add; leave one of the two out", "local"
            )
        return validated(ServeConfig, door | {MODELS: models})


def path_of(index: int, raw: str) -> str:
    """What an error calls a key of an item of `models`."""
    return f"{MODELS}[{index}].{raw}"


def _read(settings: Mapping[str, object]) -> _Given:
    given = _Given({}, {})
    for raw, value in settings.items():
        name = target(raw)
        held = _held(raw, name, value)
        if name not in keys():
            continue
        if name in given.written:
            raise ConfigError(f"{raw} and {given.written[name]} set the same thing; keep one", raw)
        given.written[name] = raw
        given.values[name] = held
    return given


def plain(raw: str) -> str:
    """A key without a flag's dashes."""
    return raw.lstrip("-").replace("-", "_")


def stem(raw: str) -> str:
    """A key without dashes, and without the path into its JSON (`--compilation-config.mode`)."""
    return plain(raw).partition(".")[0]


def target(raw: str) -> str:
    """The key that `raw` sets; itself where it is no other name of one."""
    return RENAMED.get(plain(raw), plain(raw)).lstrip("!")


def _held(raw: str, name: str, value: object) -> object:
    """The value that `raw` gives to `name`."""
    if stem(raw) in IDLE:
        return converted(raw, value, bool | None) if IDLE[stem(raw)].kind is bool else None
    if stem(raw) in NOT_BUILT:
        refuse_unbuilt(raw, value)
        return None
    if name not in keys():
        raise ConfigError(f"unknown setting {raw!r}{_hint(raw, value)}", raw)
    if name == "max_model_len" and value in ("auto", -1, "-1"):
        raise ConfigError(
            f"{raw}={value} cannot be kept: choosing the longest that fits is not built yet. "
            "Leave it out for the model's own, or give a number",
            raw,
        )
    if RENAMED.get(plain(raw), "").startswith("!"):
        return not converted(raw, value, bool)
    if name == "replicas" and str(value).lower() == AUTO:
        return AUTO
    return converted(raw, value, keys()[name].kind)


def _hint(raw: str, value: object) -> str:
    if plain(raw) in ("applications", "proxy_location", "http_options"):
        return ": a file that holds it is for `serve deploy`"
    if plain(raw) in SWITCHES and not raw.startswith("-"):
        return f": it is a flag of `shoal serve` alone, --{plain(raw).replace('_', '-')}"
    if isinstance(value, Mapping):
        return ": settings stand at the left edge, not in a block"
    if isinstance(value, list | tuple):
        return ": settings stand at the left edge, each with its value"
    near = nearest(raw)
    return f"; did you mean {near!r}?" if near else ""


def nearest(raw: str) -> str | None:
    """The known key most like `raw`, in its style of dashes."""
    if plain(raw) in SWITCHES and not raw.startswith("--"):
        return None
    known = [*keys(), *RENAMED, *IDLE, *NOT_BUILT, *(SWITCHES if raw.startswith("--") else ())]
    near = difflib.get_close_matches(plain(raw), known, n=1, cutoff=0.6)
    if not near:
        return None
    dashed = near[0].replace("_", "-")
    return f"--{dashed}" if raw.startswith("--") else dashed if "-" in raw else near[0]


def refuse_unbuilt(raw: str, value: object) -> None:
    """Raise ConfigError unless `value`, which may be text, leaves the unbuilt feature off."""
    unbuilt = NOT_BUILT[stem(raw)]
    if unbuilt.kind is bool:
        value = converted(raw, value, bool | None)
    if unbuilt.asks(value):
        said = setting(raw, value)
        raise ConfigError(f"`{said}` cannot be kept: {unbuilt.why}. Remove it to go on", raw)


def setting(raw: str, value: object) -> str:
    """A key and its value as they are written, on a command line or in YAML."""
    if target(raw) in SECRET:
        value = HIDDEN
    if not raw.startswith("-"):
        return f"{raw}: {shown(value)}"
    if isinstance(value, bool):
        return raw if value else f"--no-{raw.lstrip('-')}"
    return f"{raw} {shown(value)}"


def remarks(settings: Mapping[str, object]) -> Iterator[str]:
    """A line for each key that changes nothing, or that has another name here."""
    for raw, value in settings.items():
        if plain(raw) == MODELS and isinstance(value, list | tuple):
            for item in value:
                yield from remarks(item if isinstance(item, Mapping) else {})
        elif stem(raw) in IDLE:
            yield f"{setting(raw, value)}: {IDLE[stem(raw)].why}"
        elif plain(raw) in RENAMED and target(raw) != "model":
            here = target(raw).replace("_", "-")
            here = f"--{here}" if raw.startswith("-") else here
            yield f"{setting(raw, value)} is `{setting(here, _held(raw, target(raw), value))}` here"


def converted(raw: str, value: object, kind: Any) -> object:
    """`value` as the annotation `kind` wants it. Raises ConfigError naming `raw`."""
    try:
        return convert(value, kind)
    except ValueError as error:
        given = repr(shown(value)) if isinstance(value, str) else shown(value)
        if target(raw) in SECRET:
            given = HIDDEN
        raise ConfigError(f"{raw} is {given}; expected {error}", raw) from None


def _listed(items: object, common: _Given) -> tuple[ModelConfig, ...]:
    """The models of a list; `common` has what they share."""
    if not isinstance(items, list | tuple) or not items:
        raise ConfigError("`models` must be a list of models, each with its `model`", MODELS)
    for name in ("model", "served_model_name"):
        if common.values.get(name):
            raise ConfigError(
                f"{common.written[name]} names one model and `models` lists several: leave one of "
                "the two out",
                name,
            )
    defaults = {k: v for k, v in common.values.items() if k in model_keys()}
    found = tuple(_item(i, item, defaults) for i, item in enumerate(items))
    _refuse_twins(found)
    return found


def _item(index: int, item: object, defaults: Mapping[str, object]) -> ModelConfig:
    if not isinstance(item, Mapping):
        raise ConfigError(
            f"item {index + 1} of `models` is {item!r}; it must be keys of a model, at least "
            "`model: FOLDER or hub id`",
            f"{MODELS}[{index}]",
        )
    named = item.get("served-model-name", item.get("served_model_name", item.get("model")))
    where = f"item {index + 1} of `models`" + (f" ({named})" if isinstance(named, str) else "")
    written = {target(str(raw)): path_of(index, str(raw)) for raw in item}
    written |= {str(raw): path_of(index, str(raw)) for raw in item}
    with _as_written(written, f"{where}: "):
        for raw in item:
            if target(str(raw)) in keys().keys() - model_keys().keys():
                raise ConfigError(f"{raw} is of the whole server: put it beside `models`", raw)
        values = _read({str(raw): value for raw, value in item.items()}).values
        if not values.get("model"):
            raise ConfigError("`model` is missing", f"{MODELS}[{index}]")
        return _model({**defaults, **values})


def _refuse_twins(models: Iterable[ModelConfig]) -> None:
    holders: dict[str, int] = {}
    for i, model in enumerate(models):
        for name in model.served_model_name:
            if holders.setdefault(name, i) != i:
                raise ConfigError(
                    f"items {holders[name] + 1} and {i + 1} of `models` are both served as "
                    f"{name!r}: give one of them another served-model-name",
                    f"{MODELS}[{i}]",
                )


def _model(given: Mapping[str, object]) -> ModelConfig:
    values = {k: v for k, v in given.items() if k in model_keys()}
    if not values.get("model") or values["model"] == BUNDLED:
        values["model"] = str(bundled_model())
        values["served_model_name"] = values.get("served_model_name") or (BUNDLED,)
    values["served_model_name"] = values.get("served_model_name") or (values["model"],)
    if values.get("chat_template"):
        from ..engine.template import template_text  # jinja2 is not for every command

        # Its text goes along: a gateway on another node has not the file.
        values["chat_template"] = template_text(str(values["chat_template"]))
    _scale(values)
    _check_options(values.get("ray_actor_options"))
    names = engine_config.engine_keys()
    engine = EngineConfig(**{k: v for k, v in values.items() if k in names})  # type: ignore[arg-type]
    rest = {k: v for k, v in values.items() if k not in names}
    return validated(ModelConfig, rest | {"engine": engine})


def _check_options(options: object) -> None:
    for name in options if isinstance(options, Mapping) else ():
        if name in ("resources", "accelerator_type"):
            raise ConfigError(f"{name} is a key of its own: put it beside", "ray_actor_options")
        if name not in ACTOR_OPTIONS:
            known = ", ".join(ACTOR_OPTIONS)
            raise ConfigError(
                f"ray_actor_options.{name} is not for replicas; there are {known}",
                "ray_actor_options",
            )


def _scale(values: dict[str, object]) -> None:
    """Put the number of replicas to begin with in place of `auto`, or of none where they scale."""
    if values.get("replicas") == AUTO:
        del values["replicas"]
        values["autoscaling"] = values.get("autoscaling") or {}
    scaling = values.get("autoscaling")
    if not isinstance(scaling, Mapping):
        return
    bounds = validated(Autoscaling, scaling, "autoscaling")
    values["autoscaling"] = bounds
    least, most = max(1, bounds.min_replicas), bounds.max_replicas or math.inf
    if most < least:
        raise ConfigError(
            f"autoscaling.max_replicas {most} is below min_replicas {least}", "autoscaling"
        )
    replicas = values.setdefault("replicas", least)
    if not isinstance(replicas, int) or not least <= replicas <= most:
        raise ConfigError(
            f"replicas={replicas} is what autoscaling begins with: it must be from {least} to "
            f"{most:g}, or left out",
            "replicas",
        )


@contextmanager
def _as_written(written: Mapping[str, str], where: str = "") -> Iterator[None]:
    """Errors raised inside name the key as it was written, and begin with `where`."""
    try:
        yield
    except ConfigError as error:
        key = written.get(error.key or "", error.key)
        said = error.message
        if key and re.match(rf"{re.escape(error.key or '')}[ =]", said):
            said = key.rpartition(".")[2] + said.removeprefix(error.key or "")
        raise ConfigError(where + said, key) from None


def _check(given: Mapping[str, object]) -> None:
    _check_door(given)
    if bool(given.get("ssl_keyfile")) != bool(given.get("ssl_certfile")):
        key = "ssl_keyfile" if given.get("ssl_keyfile") else "ssl_certfile"
        raise ConfigError("ssl_keyfile and ssl_certfile go together: give both or neither", key)
    if given.get("local") and given.get("gateways", 1) != 1:
        raise ConfigError("gateways: --local has one gateway; leave one of the two out", "gateways")
    if given.get("local") and given.get("ray_address"):
        raise ConfigError("ray_address: --local needs no Ray; leave one of the two out", "local")


def _check_local(models: Iterable[ModelConfig]) -> None:
    """A process that serves alone is one rank of each model."""
    for model in models:
        if (ranks := num_ranks(model.engine)) > 1:
            raise ConfigError(
                f"{model.name} wants {ranks} ranks, which Ray places, and --local does without "
                "Ray: leave --local out, or set tensor_parallel_size and pipeline_parallel_size "
                "to 1",
                "local",
            )


def _check_door(given: Mapping[str, object]) -> None:
    """What pydantic's bounds cannot say of a key: who would get in, and where paths would lead."""
    if not all(key.strip() for key in cast(tuple[str, ...], given.get("api_key", ()))):
        raise ConfigError(
            "api_key is empty, which would let everybody in: give a key (is a variable unset?), "
            "or leave it out to ask for none",
            "api_key",
        )
    name, root = given.get("name", "a"), str(given.get("root_path", ""))
    if not re.fullmatch(r"\w[\w .-]*", str(name)):
        raise ConfigError(
            f"name is {name!r}; it is part of file names: letters, digits, _, - and . only", "name"
        )
    if root and not re.fullmatch(r"(/[^/\s?#]+)+", root):
        raise ConfigError(
            f"root_path is {root!r}; it begins with a / and does not end with one, as "
            f"/{root.strip('/') or 'llm'}",
            "root_path",
        )
