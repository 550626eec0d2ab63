"""A YAML configuration file: its keys, each with the line it stands on.

A file that cannot be read is answered with its line and, where one change to that line mends the
file, with the mended line. Nothing in a file is executed, and what it may hold is bounded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import yaml
from yaml.reader import ReaderError

from ..engine.errors import ConfigError

MAX_BYTES = 64 * 2**10
MAX_VALUES = 10_000  # with every alias written out
SHOWN = 160  # characters of a line that are quoted

_SECRET_KEY = r"(?:api|hf|auth|access|secret)[-_ ]?(?:key|token)s?\b[\"']?"
_SECRET = re.compile(rf"({_SECRET_KEY}\s*+[:=,]?+)\s*+\S.*", re.IGNORECASE)
_KEY = re.compile(r"\s*(?:- )?[\w-]+\s*:")
_TAG = "tag:yaml.org,2002:"
_KINDS = ("map", "seq", "str", "int", "float", "bool", "null", "timestamp", "merge", "value")
_TAGS = {_TAG + kind for kind in _KINDS}


class Entry(NamedTuple):
    """A value and the number of its line, from 1, with the line's text.

    `source` is the value as it was written. Of a list, `items` are the places of its items and,
    where these are mappings, of their keys.
    """

    value: object
    line: int
    text: str
    source: str = ""
    items: tuple[Item, ...] = ()


class Item(NamedTuple):
    """An item of a list: where it begins, and the keys of a mapping."""

    line: int
    text: str
    entries: dict[str, Entry]


class _Fault(Exception):
    """Why a text is refused, and the line, from 0, where that was noticed.

    `begun` is the line of what it was in the middle of; None where the text is YAML, but no
    configuration.
    """

    def __init__(self, line: int, reason: str, begun: int | None = None) -> None:
        super().__init__(line, reason, begun)
        self.line, self.reason, self.begun = line, reason, begun


def read(path: str | Path) -> dict[str, Entry]:
    """The keys of the file at `path`, in its order.

    Raises ConfigError with file, line, the line itself and, if it can be guessed, the right one.
    """
    text = _text_of(path)
    try:
        return _parse(text)
    except _Fault as fault:
        raise ConfigError(_explain(str(path), text, fault), "config") from None


def quote(path: str, line: int, text: str, instead: str | None = None) -> str:
    """Where something stands, the line itself, and the lines that should be there.

    What begins a line is shown where it alone is wrong, a tab as `\\t`; a secret never is.
    """
    begins_wrong = instead is not None and instead.strip() == text.strip()
    there = text.rstrip().replace("\t", "\\t") if begins_wrong else text.strip()
    shown = f"\n  {path}, line {line}:\n    {shortened(_without_secret(there, '(not shown)'))}"
    if not instead:
        return shown
    new = (_without_secret(line, '"..."') for line in instead.strip().split("\n"))
    lines = (f"\n    {shortened(line)}" for line in new)
    return shown + "\n  should read:" + "".join(lines)


def shortened(text: str) -> str:
    """The text, or its beginning where it is too long to be shown."""
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


def _text_of(path: str | Path) -> str:
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}", "config") from None
    except ValueError as error:
        raise ConfigError(f"cannot read {path!r}: {error}", "config") from None
    if len(data) > MAX_BYTES:
        raise ConfigError(
            f"{path} is longer than {MAX_BYTES:,} bytes: that is no configuration", "config"
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text", "config") from None


def _parse(text: str) -> dict[str, Entry]:
    """Raises _Fault."""
    try:
        node = yaml.SafeLoader(text).get_single_node()
        if node is None or node.tag == _TAG + "null":
            return {}
        _bound(node)
        if not isinstance(node, yaml.MappingNode):
            at = node.start_mark.line
            raise _Fault(at, "a file is a list of `key: value` lines", at)
        return _Document(text).entries(node)
    except yaml.MarkedYAMLError as error:
        begun, noticed = error.context_mark, error.problem_mark or error.context_mark
        at = noticed.line if noticed else 0
        if begun and error.context == "while scanning a simple key":
            at = begun.line
        raise _Fault(at, error.problem or "not YAML", begun.line if begun else at) from None
    except ReaderError as error:
        at = text.count("\n", 0, error.position)
        raise _Fault(at, "a character that YAML does not allow", at) from None
    except RecursionError:
        raise _Fault(0, "it is nested too deeply") from None


def _bound(root: yaml.Node) -> None:
    """Raise _Fault where aliases make the document endless or far larger than its text."""
    sizes: dict[int, int | None] = {}

    def size(node: yaml.Node) -> int:
        """The values of a node, itself among them, each alias as large as what it stands for."""
        if id(node) in sizes:
            known = sizes[id(node)]
            if known is None:
                raise _Fault(node.start_mark.line, "it contains itself, by an alias")
            return known
        sizes[id(node)] = None
        children: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            children = node.value
        elif isinstance(node, yaml.MappingNode):
            children = [part for pair in node.value for part in pair]
        total = 1 + sum(map(size, children))
        if total > MAX_VALUES:
            raise _Fault(node.start_mark.line, f"it holds more than {MAX_VALUES:,} values")
        sizes[id(node)] = total
        return total

    size(root)


class _Document:
    """Nodes of one text, made into values and places."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._lines = text.splitlines()
        self._loader = yaml.SafeLoader("")

    def entries(self, node: yaml.MappingNode) -> dict[str, Entry]:
        """The keys of a mapping. Raises _Fault for a key that is given twice or is no word."""
        found: dict[str, Entry] = {}
        for key_node, value_node in node.value:
            at = key_node.start_mark.line
            key = self._value(key_node)
            if key == "<<":
                raise _Fault(at, "keys are not merged; write each where it belongs")
            if not isinstance(key, str):
                raise _Fault(at, f"a key is a word, not {key!r}")
            if key in found:
                raise _Fault(at, f"{key!r} was set before, on line {found[key].line}; keep one")
            value, source = self._value(value_node), self._source(value_node)
            found[key] = Entry(value, at + 1, self._lines[at], source, self._items(value_node))
        return found

    def _items(self, node: yaml.Node) -> tuple[Item, ...]:
        found = []
        for item in node.value if isinstance(node, yaml.SequenceNode) else ():
            at = item.start_mark.line
            entries = self.entries(item) if isinstance(item, yaml.MappingNode) else {}
            found.append(Item(at + 1, self._lines[at], entries))
        return tuple(found)

    def _value(self, node: yaml.Node) -> object:
        if node.tag not in _TAGS:
            raise _Fault(node.start_mark.line, f"tags such as {node.tag} are not read")
        if isinstance(node, yaml.MappingNode):
            return {key: entry.value for key, entry in self.entries(node).items()}
        if isinstance(node, yaml.SequenceNode):
            return [self._value(item) for item in node.value]
        assert isinstance(node, yaml.ScalarNode)
        return self._scalar(node)

    def _scalar(self, node: yaml.ScalarNode) -> object:
        """A text, number, truth or nothing.

        Dates and what YAML 1.1 takes for numbers to base 60 or 8 stay the text that they are.
        """
        kind = node.tag.removeprefix(_TAG)
        written = str(node.value)
        is_odd = ":" in written or re.fullmatch(r"[+-]?0[0-9_]+", written)
        if kind in ("str", "timestamp", "merge", "value") or (kind in ("int", "float") and is_odd):
            return written
        try:
            return self._loader.construct_object(node)
        except (ValueError, KeyError):
            raise _Fault(node.start_mark.line, f"a value that is no {kind}") from None

    def _source(self, node: yaml.Node) -> str:
        start = node.start_mark.index - (node.start_mark.column if _is_block(node) else 0)
        return self._text[start : node.end_mark.index].rstrip()


def _is_block(node: yaml.Node) -> bool:
    return isinstance(node, yaml.CollectionNode) and not node.flow_style


def _explain(path: str, text: str, fault: _Fault) -> str:
    lines = text.splitlines()
    noticed = min(fault.line, len(lines) - 1)
    if _below_secret(lines[: noticed + 1]):
        return f"{path} cannot be read: {fault.reason}" + quote(path, noticed + 1, "(not shown)")
    if fault.begun is not None:
        for at in (fault.begun, *range(noticed, max(-1, noticed - 3), -1)):
            for better in _guesses(lines[at]):
                if better != lines[at] and _mends([*lines[:at], better, *lines[at + 1 :]], noticed):
                    return f"{path} cannot be read" + quote(path, at + 1, lines[at], better)
    return f"{path} cannot be read: {fault.reason}" + quote(path, noticed + 1, lines[noticed])


def _without_secret(line: str, instead: str) -> str:
    return _SECRET.sub(rf"\1 {instead}", line)


def _below_secret(lines: list[str]) -> bool:
    """Whether the last of the lines goes on with the value of a key that is a secret."""
    for line in reversed(lines):
        if re.search(_SECRET_KEY, line, re.IGNORECASE):
            return line is not lines[-1]
        if _KEY.match(line):
            return False
    return False


def _mends(lines: list[str], noticed: int) -> bool:
    """Whether the text is right beyond the line where it was found wrong."""
    try:
        _parse("\n".join(lines))
    except _Fault as fault:
        return fault.line > noticed
    return True


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
