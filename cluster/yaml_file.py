"""A YAML configuration file: its keys, each with the line it stands on.

A file that cannot be read is answered with its line and, where one change to that line mends the
file, with the mended line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import yaml
from yaml.reader import ReaderError

from ..engine.errors import ConfigError


class Entry(NamedTuple):
    """A value and the number of its line, from 1, with the line's text.

    Of a list, `items` are the places of its items and, where these are mappings, of their keys.
    """

    value: object
    line: int
    text: str
    items: tuple[Item, ...] = ()


class Item(NamedTuple):
    """An item of a list: where it begins, and the keys of a mapping."""

    line: int
    text: str
    entries: dict[str, Entry]


class _Fault(NamedTuple):
    """Why a text is refused, and the line, from 0, where that was noticed.

    `begun` is the line of what it was in the middle of; None where the text is YAML, but no
    configuration.
    """

    line: int
    reason: str
    begun: int | None = None


def read(path: str | Path) -> dict[str, Entry]:
    """The keys of the file at `path`, in its order.

    Raises ConfigError with file, line, the line itself and, if it can be guessed, the right one.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}", "config") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text", "config") from None
    found = _parse(text)
    if isinstance(found, _Fault):
        raise ConfigError(_explain(str(path), text, found), "config")
    return found


def quote(path: str, line: int, text: str, instead: str | None = None) -> str:
    """Where something stands, the line itself, and the line that should be there.

    What begins a line is shown where it alone is wrong, a tab as `\\t`.
    """
    begins_wrong = instead is not None and instead.strip() == text.strip()
    there = text.rstrip().replace("\t", "\\t") if begins_wrong else text.strip()
    shown = f"\n  {path}, line {line}:\n    {there}"
    return shown + (f"\n  should read:\n    {instead.strip()}" if instead else "")


def _parse(text: str) -> dict[str, Entry] | _Fault:
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None or node.tag == "tag:yaml.org,2002:null":
            return {}
        if not isinstance(node, yaml.MappingNode):
            at = node.start_mark.line
            return _Fault(at, "a file is a list of `key: value` lines", at)
        return _entries(loader, node, text.splitlines())
    except yaml.MarkedYAMLError as error:
        begun, noticed = error.context_mark, error.problem_mark or error.context_mark
        at = noticed.line if noticed else 0
        if begun and error.context == "while scanning a simple key":
            at = begun.line
        return _Fault(at, error.problem or "not YAML", begun.line if begun else at)
    except ReaderError as error:
        at = text.count("\n", 0, error.position)
        return _Fault(at, "a character that YAML does not allow", at)


def _entries(
    loader: yaml.SafeLoader, node: yaml.MappingNode, lines: list[str]
) -> dict[str, Entry] | _Fault:
    found: dict[str, Entry] = {}
    for key_node, value_node in node.value:
        at = key_node.start_mark.line
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            return _Fault(at, f"a key is a word, not {key!r}")
        if key in found:
            return _Fault(at, f"{key!r} was set before, on line {found[key].line}")
        value = loader.construct_object(value_node, deep=True)
        items = _items(loader, value_node, lines)
        if isinstance(items, _Fault):
            return items
        found[key] = Entry(value, at + 1, lines[at], items)
    return found


def _items(loader: yaml.SafeLoader, node: yaml.Node, lines: list[str]) -> tuple[Item, ...] | _Fault:
    found = []
    for item in node.value if isinstance(node, yaml.SequenceNode) else ():
        entries: dict[str, Entry] | _Fault = {}
        if isinstance(item, yaml.MappingNode):
            entries = _entries(loader, item, lines)
        if isinstance(entries, _Fault):
            return entries
        at = item.start_mark.line
        found.append(Item(at + 1, lines[at], entries))
    return tuple(found)


def _explain(path: str, text: str, fault: _Fault) -> str:
    lines = text.splitlines()
    noticed = min(fault.line, len(lines) - 1)
    if fault.begun is not None:
        for at in (fault.begun, *range(noticed, max(-1, noticed - 3), -1)):
            for better in _guesses(lines[at]):
                if better != lines[at] and _mends([*lines[:at], better, *lines[at + 1 :]], noticed):
                    return f"{path} cannot be read" + quote(path, at + 1, lines[at], better)
    return f"{path} cannot be read: {fault.reason}" + quote(path, noticed + 1, lines[noticed])


def _mends(lines: list[str], noticed: int) -> bool:
    """Whether the text is right beyond the line where it was found wrong."""
    found = _parse("\n".join(lines))
    return isinstance(found, dict) or found.line > noticed


def _guesses(line: str) -> Iterator[str]:
    """What may have been meant by a line, likeliest first."""
    bare = line.strip()
    if "\t" in line:
        yield bare.replace("\t", " ")
    if flag := re.fullmatch(r"--?(\w[\w-]*)(?:[ =]\s*(.+))?", bare):
        yield f"{flag[1]}: {flag[2] or 'true'}"
    if pair := re.fullmatch(r"(?:- )?([\w-]+)\s*(?:[=:]\s*|\s)(\S.*)", bare):
        yield f"{pair[1]}: {pair[2]}"
        yield f"{pair[1]}: {_closed(pair[2])}"
    if re.fullmatch(r"\w[\w-]*", bare):
        yield f"{bare}: true"
    yield bare


def _closed(value: str) -> str:
    """The value with the quote or bracket that it lacks, or in quotes."""
    if value[0] == "[":
        return value.rstrip(",") + "]"
    if value[0] in "\"'":
        return value + value[0]
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
