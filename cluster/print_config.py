"""A configuration as the YAML that gives it, with where each value comes from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import yaml

from .config import BUNDLED, SECRET, Autoscaling, Key, ModelConfig, bundled_model, keys, model_keys
from .resolve import Resolved

DERIVED = {"model": "default", "served_model_name": "the model's name"}
_WIDE = 44


class _Line(NamedTuple):
    """A key and its value as YAML, and where the value comes from."""

    text: str
    origin: str


def printed(resolved: Resolved) -> str:
    """YAML that `--config` reads back to the same configuration, but for its secrets.

    Those stay comments: who may read a terminal may not read a key.
    """
    config, origins = resolved.config, resolved.origins
    server = [key for name, key in keys().items() if name not in model_keys()]
    if len(config.models) == 1:
        found = {k.removeprefix("models[0]."): origin for k, origin in origins.items()}
        lines = [_line(key, value, found) for key, value in _of_model(config.models[0])]
    else:
        lines = [_Line("models:", origins.get("models", ""))]
        for i, model in enumerate(config.models):
            lines += _item(i, model, origins)
    lines += [_line(key, getattr(config, key.name), origins) for key in server]
    return "\n".join(map(_shown, lines)) + "\n"


def _shown(line: _Line) -> str:
    return f"{line.text:<{_WIDE}}  # {line.origin}" if line.origin else line.text


def _of_model(model: ModelConfig) -> Iterator[tuple[Key, object]]:
    for name, key in model_keys().items():
        home = model if name in ModelConfig.model_fields else model.engine
        yield key, getattr(home, name)


def _item(index: int, model: ModelConfig, origins: Mapping[str, str]) -> list[_Line]:
    """A model of several; what all of them share stands in each."""
    prefix = f"models[{index}]."
    own = {k.removeprefix(prefix): o for k, o in origins.items() if k.startswith(prefix)}
    lines = [_line(key, value, {**origins, **own}) for key, value in _of_model(model)]
    marks = ("  - ", *["    "] * (len(lines) - 1))
    return [_Line(mark + text, origin) for mark, (text, origin) in zip(marks, lines, strict=True)]


def _line(key: Key, value: object, origins: Mapping[str, str]) -> _Line:
    name = key.name.replace("_", "-")
    if key.name in SECRET and value:
        return _Line(f"# {name}: not shown", origins.get(key.name, ""))
    origin = origins.get(key.name) or DERIVED.get(key.name, "default")
    if key.name == "model" and value == str(bundled_model()):
        value = BUNDLED
    return _Line(f"{name}: {_yaml(value)}", origin)


def _yaml(value: object) -> str:
    plain = list(value) if isinstance(value, tuple) else value
    if isinstance(plain, Autoscaling):
        plain = plain.model_dump(exclude_none=True)
    text = yaml.safe_dump(plain, default_flow_style=True, width=10**6, allow_unicode=True)
    return text.removesuffix("...\n").strip()
