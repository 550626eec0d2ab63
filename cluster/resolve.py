"""One configuration from a command line, its YAML file and the environment.

The command line wins over the file, the file over the environment.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ..engine.errors import ConfigError
from .amend import amended
from .config import ServeConfig
from .environment import from_environment, named
from .flags import parse
from .settings import MODELS, path_of, remarks, serve_config, target
from .yaml_file import Entry, quote, read


class Resolved(NamedTuple):
    """A configuration, where each key that was given stands, and what is to be said of them.

    A key of an item of `models` is called `models[0].KEY` in `origins`.
    """

    config: ServeConfig
    origins: Mapping[str, str]
    remarks: tuple[str, ...]


def configure(args: Sequence[str], environ: Mapping[str, str] = os.environ) -> ServeConfig:
    """The configuration alone; see `resolve`."""
    return resolve(args, environ).config


def resolve(args: Sequence[str], environ: Mapping[str, str] = os.environ) -> Resolved:
    """The configuration of a command line, with where it comes from.

    Raises ConfigError, which quotes the line of the file where that is to blame.
    """
    line = parse(args)
    entries = read(line.file) if line.file else {}
    flagged = {target(raw) for raw in line.settings}
    entries = {key: entry for key, entry in entries.items() if target(key) not in flagged}
    models = entries.get(MODELS)
    settings = {**{key: entry.value for key, entry in entries.items()}, **line.settings}
    places = entries | _places_of_items(models)
    try:
        for raw in line.settings:
            _refuse_override(raw, models)
        config = serve_config(settings, environ)
    except ConfigError as error:
        place = places.get(error.key or "")
        if place is None or error.key is None:
            raise
        raw = error.key if error.key in entries else error.key.rpartition(".")[2]
        quoted = quote(str(line.file), place.line, place.text, amended(raw, place))
        raise ConfigError(error.message + quoted, error.key) from None
    origins = {target(raw): "command line" for raw in line.settings}
    origins |= {_key_of(raw): f"{line.file}, line {place.line}" for raw, place in places.items()}
    for key, (_, variable) in from_environment(environ).items():
        origins.setdefault(key, f"environment, {variable}")
    said = [*filter(None, [line.remark]), *remarks(settings), *named(environ)]
    return Resolved(config, origins, tuple(dict.fromkeys(said)))


def _key_of(raw: str) -> str:
    where, dot, key = raw.rpartition(".")
    return where + dot + target(key)


def _places_of_items(models: Entry | None) -> dict[str, Entry]:
    """Where the items of `models` and their keys stand, by what errors call them."""
    found = {}
    for i, item in enumerate(models.items if models else ()):
        found[f"{MODELS}[{i}]"] = Entry(None, item.line, item.text)
        found |= {path_of(i, key): entry for key, entry in item.entries.items()}
    return found


def _refuse_override(raw: str, models: Entry | None) -> None:
    """Raise ConfigError where an item of `models` has its own word on what a flag sets.

    The command line wins over a file, but which models it was meant for cannot be known.
    """
    for i, item in enumerate(models.items if models else ()):
        for key in item.entries:
            if target(key) == target(raw) and target(key) not in ("model", "served_model_name"):
                raise ConfigError(
                    f"{raw} is set by item {i + 1} of `models` itself; change it there, or remove "
                    "it there to have the flag's",
                    path_of(i, key),
                )
