"""The command line of `shoal serve`: flags made from the settings, read the way vLLM's are.

Dashes and underscores are alike; a flag of true or false stands alone, as `--no-flag`, or with a
word (`--flag false`); a flag of several texts takes them in a row, repeated, or as a JSON list.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple, cast, get_args, get_origin

import typer

from ..engine.errors import ConfigError
from .config import Key, keys
from .names import IDLE, NOT_BUILT, SHORT
from .settings import converted, nearest, plain, stem, target
from .values import optional, several


class CommandLine(NamedTuple):
    """What was asked for: settings by the flag as typed, and the YAML file, if any.

    `remark`: how a line was taken that could mean something else.
    """

    settings: dict[str, object]
    file: str | None
    remark: str | None = None


def parse(args: Sequence[str]) -> CommandLine:
    """Read a command line. Raises ConfigError naming the flag."""
    words = [part for arg in args for part in _long(arg)]
    settings: dict[str, object] = {}
    file: str | None = None
    rows: list[str] = []
    while words:
        word = words.pop(0)
        if word == "--" or not word.startswith("-"):
            if word == "--" and not words:
                break
            _take_model(settings, words.pop(0) if word == "--" else word)
            continue
        flag, equals, value = word.partition("=")
        if flag == "--config":
            if file is not None:
                raise ConfigError("--config is given twice; keep one file", "--config")
            file = _file(value if equals else _next(flag, words))
        else:
            if _take(settings, flag, value if equals else None, words):
                rows.append(flag)
    named = file is not None or any(target(raw) == "model" for raw in settings)
    return CommandLine(settings, file, None if named or not rows else _split(settings, rows[-1]))


def _long(word: str) -> list[str]:
    """The word with a short flag written out; -O may have its level, or a path, attached."""
    if word.startswith("--") or not word.startswith("-"):
        return [word]
    if level := re.fullmatch(r"-O=?(\w+)", word):
        return [SHORT["-O"], level[1]]
    if word.startswith("-O."):
        return ["--compilation-config" + word[2:]]
    glued = re.fullmatch(r"(-[a-z]+)(\d+)", word)
    if glued and glued[1] in SHORT:
        return [SHORT[glued[1]], glued[2]]
    flag, equals, value = word.partition("=")
    return [SHORT.get(flag.replace("_", "-"), flag) + equals + value]


def _file(name: str) -> str:
    if not name:
        raise ConfigError("--config needs the name of a YAML file", "--config")
    return name


def _take_model(settings: dict[str, object], word: str) -> None:
    model = next((settings[raw] for raw in settings if target(raw) == "model"), None)
    if model is not None:
        raise ConfigError(f"unexpected argument {word!r}: the model is {model!r} already", "model")
    settings["model"] = word


def _split(settings: dict[str, object], flag: str) -> str:
    """Make MODEL of the last word in the row of a flag, where there is no other; say so."""
    flag, _ = _resolve(flag)
    *texts, model = cast(tuple[str, ...], settings[flag])
    settings[flag], settings["model"] = tuple(texts), model
    return (
        f"{model!r}, the last word after {flag}, is taken for MODEL; give MODEL first, or --model"
    )


def _take(settings: dict[str, object], flag: str, value: str | None, words: list[str]) -> bool:
    """Put one flag and its value, taken off `words` where it is not in the flag, into `settings`.

    A flag of several texts takes all the words up to the next flag. Returns whether it took more
    than one, of which the last may be MODEL.
    """
    flag, kind = _resolve(flag)
    if flag.startswith("--no-") and not _known(flag):
        settings["--" + flag[5:]] = not converted(flag, True if value is None else value, bool)
    elif kind is bool:
        if value is None and words and words[0].lower() in ("true", "false"):
            value = words.pop(0)
        settings[flag] = converted(flag, True if value is None else value, bool)
    elif kind is list or several(kind):
        given = [value if value is not None else _next(flag, words)]
        while words and not words[0].startswith("-"):
            given.append(words.pop(0))
        before = cast(tuple[str, ...], settings.get(flag, ()))
        texts = given if kind is list else sum((_texts(flag, word) for word in given), ())
        settings[flag] = (*before, *texts)
        return len(given) > 1 and not given[-1].startswith("[")
    else:
        settings[flag] = value if value is not None else _next(flag, words)
    return False


def _resolve(flag: str) -> tuple[str, Any]:
    """The flag with dashes, a path into its JSON as it is, and the annotation of its value."""
    name, dot, path = flag.partition(".")
    dashed = "--" + plain(name).replace("_", "-") + dot + path
    known = plain(name)
    if known in IDLE or known in NOT_BUILT:
        return dashed, str if path else {**NOT_BUILT, **IDLE}[known].kind
    if known.startswith("no_") and _is_truth(known[3:]) and not path:
        return dashed, bool
    if not flag.startswith("--") or path or not _known(known):
        near = nearest("--" + flag.lstrip("-")) or _parted(flag)
        hint = f"did you mean {near}?" if near else "`shoal serve --help-all` lists all"
        raise ConfigError(f"unknown flag {flag}: {hint}", flag)
    return dashed, keys()[target(known)].kind


def _parted(word: str) -> str | None:
    """A short flag that has a value attached, with a space between."""
    fitting = [short for short in SHORT if word.startswith(short) and word != short]
    if word.startswith("--") or not fitting:
        return None
    short = max(fitting, key=len)
    return f"`{short} {word.removeprefix(short)}`"


def _known(raw: str) -> bool:
    return target(raw) in keys() or stem(raw) in IDLE or stem(raw) in NOT_BUILT


def _is_truth(name: str) -> bool:
    if name in IDLE or name in NOT_BUILT:
        return {**NOT_BUILT, **IDLE}[name].kind is bool
    return target(name) in keys() and keys()[target(name)].kind is bool


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
