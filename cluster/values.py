"""The words of a flag, a YAML file or the environment, turned into what a setting holds."""

from __future__ import annotations

import json
import math
import re
import types
from decimal import Decimal
from typing import Any, Literal, Union, get_args, get_origin

_SCALE = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_SCALE |= {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_WORDS = {"true": True, "yes": True, "on": True, "1": True}
_WORDS |= {"false": False, "no": False, "off": False, "0": False}


def convert(value: object, kind: Any) -> object:
    """`value` as the annotation `kind` wants it: str, int, float, bool, a Literal of words,
    `tuple[str, ...]`, keys with values (any other annotation), or one of them or None.

    Text may stand for any of them, as on a command line. Raises ValueError saying what was
    expected.
    """
    if get_origin(kind) in (Union, types.UnionType):
        (inner,) = (arg for arg in get_args(kind) if arg is not types.NoneType)
        return None if _is_none(value) else convert(value, inner)
    if get_origin(kind) is tuple:
        return _texts(value)
    if get_origin(kind) is Literal:
        return _word(value, get_args(kind))
    return {bool: _truth, int: _whole, float: _number, str: _text}.get(kind, _keys)(value)


def shown(value: object) -> str:
    """The value as it is written, shortened."""
    if isinstance(value, bool) or value is None:
        text = {True: "true", False: "false", None: "null"}[value]
    else:
        text = value if isinstance(value, str) else _written(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _written(value: object) -> str:
    if isinstance(value, (list, tuple)) and all(isinstance(part, str) for part in value):
        return " ".join(value)
    try:
        return json.dumps(value, default=str)
    except (ValueError, RecursionError):
        return type(value).__name__


def optional(kind: Any) -> bool:
    """Whether the annotation admits None."""
    return types.NoneType in get_args(kind)


def several(kind: Any) -> bool:
    """Whether the annotation is a tuple: its flag may be given again and again."""
    return get_origin(kind) is tuple


def _is_none(value: object) -> bool:
    return value is None or (isinstance(value, str) and value.lower() in ("none", "null", ""))


def _truth(value: object) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in _WORDS:
        return _WORDS[value.lower()]
    raise ValueError("true or false")


def _whole(value: object) -> int:
    """An integer; `2k` is 2,000 and `2K` is 2,048, likewise m/M, g/G, t/T."""
    wanted = "a whole number (32k stands for 32,000 and 32K for 32,768)"
    if isinstance(value, bool):
        raise ValueError(wanted)
    if isinstance(value, int):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    match = re.fullmatch(r"([+-]?\d+(?:\.\d+)?)([kmgtKMGT]?)", str(value).replace("_", "").strip())
    if not match:
        raise ValueError(wanted)
    scaled = Decimal(match[1]) * _SCALE.get(match[2], 1)
    if scaled != int(scaled):
        raise ValueError(wanted)
    return int(scaled)


def _number(value: object) -> float:
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if math.isfinite(number):
            return number
    raise ValueError("a number")


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    raise ValueError("text, in quotes" if isinstance(value, (bool, int, float)) else "text")


def _word(value: object, words: tuple[str, ...]) -> str:
    for word in words:
        if isinstance(value, str) and value.lower() == word.lower():
            return word
    raise ValueError(f"one of {', '.join(words)}")


def _keys(value: object) -> dict[str, object]:
    """A mapping, or JSON of one; dashes in its keys are underscores."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            value = None
    if not isinstance(value, dict):
        raise ValueError('keys with values, such as {"min_replicas": 1}')
    return {str(key): held for key, held in value.items()}


def _texts(value: object) -> tuple[str, ...]:
    """One text or a list of them; a text that starts with `[` is read as JSON, as vLLM does."""
    if isinstance(value, str):
        if not value.startswith("["):
            return (value,)
        try:
            value = json.loads(value)
        except ValueError:
            raise ValueError('a list, such as ["a", "b"]') from None
    if value is None:
        return ()
    if isinstance(value, (list, tuple)):
        return tuple(_text(item) for item in value)
    if isinstance(value, (bool, int, float)):
        raise ValueError("text, in quotes, or a list of texts")
    raise ValueError("text or a list of texts")
