"""The line that should stand where a YAML file has a key or a value that is refused."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from .config import keys
from .names import IDLE, NOT_BUILT
from .settings import MODELS, nearest, stem, target
from .values import several
from .yaml_file import Entry

MOST_LINES = 8


def amended(key: str, entry: Entry) -> str | None:
    """What should stand instead of `entry`, where that can be told; lines parted by newlines."""
    if key.partition("[")[0] == MODELS:
        return None
    if target(key) in keys():
        return _value_amended(key, keys()[target(key)].kind, entry)
    if stem(key) in IDLE or stem(key) in NOT_BUILT:
        return None
    if isinstance(entry.value, (dict, list)):
        return _unnested(entry)
    near = nearest(key)
    return near and entry.text.replace(key, near, 1)


def _value_amended(key: str, kind: Any, entry: Entry) -> str | None:
    value = entry.value
    if isinstance(value, list) and len(value) == 1 and not several(kind):
        return f"{key}: {_scalar(value[0])}"
    if isinstance(value, (bool, int, float)) and str in _kinds(kind):
        head, colon, tail = entry.text.partition(":")
        return head + colon + tail.replace(entry.source, f'"{entry.source}"', 1)
    return None


def _kinds(kind: Any) -> tuple[Any, ...]:
    """The scalars that an annotation names; none for a choice of words."""
    if get_origin(kind) is Literal:
        return ()
    inner = get_args(kind)
    return tuple(k for arg in inner for k in _kinds(arg)) if inner else (kind,)


def _unnested(entry: Entry) -> str | None:
    """The keys of a block, or the flags of a list, each as a line of its own."""
    if isinstance(entry.value, dict):
        lines = textwrap.dedent(entry.source).splitlines()
        if entry.source.lstrip().startswith("{"):
            lines = [f"{key}: {_scalar(value)}" for key, value in entry.value.items()]
    else:
        words = entry.value if isinstance(entry.value, list) else []
        lines = list(_flag_lines([word for word in words if isinstance(word, str)]))
    if len(lines) > MOST_LINES:
        lines = [*lines[:MOST_LINES], "..."]
    return "\n".join(lines) or None


def _flag_lines(words: list[str]) -> Iterator[str]:
    """Flags, as a container's manifest lists them, as YAML."""
    for i, word in enumerate(words):
        flag = re.fullmatch(r"--([\w-]+)(?:[= ](.*))?", word)
        if not flag:
            continue
        following = words[i + 1] if i + 1 < len(words) else "--"
        value = flag[2] or ("true" if following.startswith("--") else following)
        yield f"{flag[1]}: {value}"


def _scalar(value: object) -> str:
    return value if isinstance(value, str) and value else json.dumps(value, default=str)
