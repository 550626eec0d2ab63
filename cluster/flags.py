"""The command line of `shoal serve`: flags made from the settings, read the way vLLM's are.

Dashes and underscores are alike; a flag of true or false stands alone, as `--no-flag`, or with a
word (`--flag false`); a flag of several texts takes them in a row, repeated, or as a JSON list.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, cast, get_args, get_origin

import typer

from ..engine.errors import ConfigError
from .config import Key, ServeConfig, keys
from .names import CHANGES_NOTHING, NOT_BUILT
from .settings import MODELS, converted, nearest, path_of, plain, serve_config, target
from .values import optional, several
from .yaml_file import Entry, quote, read


class CommandLine(NamedTuple):
    """What was asked for: settings by the flag as typed, and the YAML file, if any."""

    settings: dict[str, object]
    file: str | None


def configure(args: Sequence[str], environ: Mapping[str, str] = os.environ) -> ServeConfig:
    """The configuration of a command line: its flags, then its YAML file, then `environ`.

    Raises ConfigError, which quotes the line of the file where that is to blame.
    """
    line = parse(args)
    entries = read(line.file) if line.file else {}
    flagged = {target(raw) for raw in line.settings}
    entries = {key: entry for key, entry in entries.items() if target(key) not in flagged}
    settings = {key: entry.value for key, entry in entries.items()}
    places = entries | _places_of_items(entries.get(MODELS))
    try:
        for raw in line.settings:
            _refuse_override(raw, entries.get(MODELS))
        return serve_config({**settings, **line.settings}, environ)
    except ConfigError as error:
        entry = places.get(error.key or "")
        if entry is None or error.key is None:
            raise
        raw = error.key.rpartition(".")[2] if error.key not in entries else error.key
        near = None if raw.startswith(MODELS) or _known(raw) else nearest(raw)
        instead = near and entry.text.replace(raw, near, 1)
        quoted = quote(str(line.file), entry.line, entry.text, instead)
        raise ConfigError(error.message + quoted, error.key) from None


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


def parse(args: Sequence[str]) -> CommandLine:
    """Read a command line. Raises ConfigError naming the flag."""
    words = list(args)
    settings: dict[str, object] = {}
    file: str | None = None
    has_model = any(plain(word.split("=")[0]) == "model" for word in words if word[:2] == "--")
    while words:
        word = words.pop(0)
        if word == "--" or not word.startswith("-"):
            if word == "--" and not words:
                break
            _take_model(settings, words.pop(0) if word == "--" else word)
            has_model = True
            continue
        flag, equals, value = word.partition("=")
        if flag in ("--config", "-c"):
            file = str(value if equals else _next(flag, words))
        else:
            _take(settings, flag, value if equals else None, words, greedy=has_model)
    return CommandLine(settings, file)


def _take_model(settings: dict[str, object], word: str) -> None:
    model = next((settings[raw] for raw in settings if target(raw) == "model"), None)
    if model is not None:
        raise ConfigError(f"unexpected argument {word!r}: the model is {model!r} already", "model")
    settings["model"] = word


def _take(
    settings: dict[str, object], flag: str, value: str | None, words: list[str], *, greedy: bool
) -> None:
    """Put one flag and its value, taken off `words` where it is not in the flag, into `settings`.

    `greedy`: a flag of several texts may take all the words up to the next flag. Before MODEL it
    takes only one, or else it would take MODEL.
    """
    flag, kind = _resolve(flag)
    if flag.startswith("--no-") and not _known(flag):
        settings["--" + flag[5:]] = not converted(flag, True if value is None else value, bool)
    elif kind is bool:
        if value is None and words and words[0].lower() in ("true", "false"):
            value = words.pop(0)
        settings[flag] = converted(flag, True if value is None else value, bool)
    elif several(kind):
        given = [value if value is not None else _next(flag, words)]
        while greedy and words and not words[0].startswith("-"):
            given.append(words.pop(0))
        before = cast(tuple[str, ...], settings.get(flag, ()))
        settings[flag] = before + sum((_texts(flag, word) for word in given), ())
    else:
        settings[flag] = value if value is not None else _next(flag, words)


def _resolve(flag: str) -> tuple[str, Any]:
    """The flag with dashes, without a JSON path (`--x.y`), and the annotation of its value."""
    dashed = "--" + plain(flag).replace("_", "-")
    name = plain(flag)
    if name.split(".")[0] in NOT_BUILT:
        name = name.split(".")[0]
        return "--" + name.replace("_", "-"), type(NOT_BUILT[name][0])
    if name in CHANGES_NOTHING or (name.startswith("no_") and _is_truth(name[3:])):
        return dashed, bool
    if not flag.startswith("--") or not _known(name):
        near = nearest("--" + flag.lstrip("-"))
        hint = f"did you mean {near}?" if near else "`shoal serve --help-all` lists all"
        raise ConfigError(f"unknown flag {flag}: {hint}", flag)
    return dashed, keys()[target(name)].kind


def _known(raw: str) -> bool:
    name = plain(raw)
    return target(name) in keys() or name in CHANGES_NOTHING or name in NOT_BUILT


def _is_truth(name: str) -> bool:
    if name in NOT_BUILT:
        return isinstance(NOT_BUILT[name][0], bool)
    return name in CHANGES_NOTHING or (target(name) in keys() and keys()[target(name)].kind is bool)


def _next(flag: str, words: list[str]) -> str:
    if not words or words[0].startswith("--"):
        raise ConfigError(f"{flag} needs a value", flag)
    return words.pop(0)


def _texts(flag: str, word: str) -> tuple[str, ...]:
    return cast(tuple[str, ...], converted(flag, word, tuple[str, ...]))


def parameters() -> list[inspect.Parameter]:
    """The settings as typer's parameters, from which it draws help and completes words."""
    shown = (key for key in keys().values() if key.name != "model")
    return [
        inspect.Parameter(
            key.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=False if key.kind is bool else None,
            annotation=Annotated[_typer_kind(key), _typer_option(key)],
        )
        for key in shown
    ]


def _typer_kind(key: Key) -> Any:
    return bool if key.kind is bool else list[str] | None if several(key.kind) else str | None


def _typer_option(key: Key) -> Any:
    """The option as help shows it; of true or false, the form that changes the default."""
    flag = key.name.replace("_", "-")
    return typer.Option(
        f"--no-{flag}" if key.default is True else f"--{flag}",
        help=f"{key.help}{_told(key)}",
        metavar="" if key.kind is bool else _metavar(key.kind),
        rich_help_panel=key.group,
        hidden=not key.first,
        show_default=False,
    )


def _told(key: Key) -> str:
    """The default, where the help text does not tell it already."""
    if key.default is True:
        return " (default: on; this flag switches it off)"
    if key.default in (None, "", (), False) or "default" in key.help:
        return ""
    words = f"{', '.join(get_args(key.kind))}; " if get_origin(key.kind) is Literal else ""
    default = " ".join(key.default) if isinstance(key.default, tuple) else key.default
    return f" ({words}default: {default})"


def _metavar(kind: Any) -> str:
    inner = next(arg for arg in get_args(kind) if arg is not type(None)) if optional(kind) else kind
    return {int: "N", float: "X"}.get(inner, "TEXT")
