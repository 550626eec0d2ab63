"""The logs of one application as one stream: entries of all its files, in the order of time."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from heapq import merge
from pathlib import Path
from typing import IO, NamedTuple

_STAMP = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}")


class Entry(NamedTuple):
    """What was logged at once: a line, and those that follow it without a time of their own."""

    time: str
    source: str
    text: str


def last(folder: Path, count: int) -> list[Entry]:
    """The last `count` entries of all files in `folder`."""
    found = list(merge(*(_last_of(path, count) for path in files(folder)), key=_time))
    return found[max(len(found) - count, 0) :]


def files(folder: Path) -> list[Path]:
    """The logs in `folder`, without those that were rotated away."""
    return sorted(folder.glob("*.log"))


def entries(source: str, lines: Iterable[str], time: str = "") -> Iterator[Entry]:
    """The entries of a file's lines; those before the first time of day have `time`."""
    held: list[str] = []
    for line in lines:
        stamp = _STAMP.match(line)
        if stamp and held:
            yield Entry(time, source, "\n".join(held))
            held = []
        time = stamp[0] if stamp else time
        held.append(line.rstrip("\n"))
    if held:
        yield Entry(time, source, "\n".join(held))


class Follower:
    """What is added to the logs in `folder`, new files and files rotated away included."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[Path, IO[str]] = {}
        self._times: dict[Path, str] = {}
        for path in files(folder):
            self._follow(path).seek(0, 2)

    def new(self) -> list[Entry]:
        """What was added since the last call, in the order of time."""
        found: list[Entry] = []
        for path in files(self._folder):
            file = self._open.get(path) or self._follow(path)
            found += self._read(path, file)
            if _replaced(path, file):
                file.close()
                found += self._read(path, self._follow(path))
        return sorted(found, key=_time)

    def close(self) -> None:
        """Let go of the files."""
        for file in self._open.values():
            file.close()

    def _follow(self, path: Path) -> IO[str]:
        self._open[path] = path.open(encoding="utf-8", errors="replace")
        return self._open[path]

    def _read(self, path: Path, file: IO[str]) -> list[Entry]:
        found = list(entries(path.stem, _whole_lines(file), self._times.get(path, "")))
        if found:
            self._times[path] = found[-1].time
        return found


def _whole_lines(file: IO[str]) -> Iterator[str]:
    """Lines up to the last that is complete; the rest stays for the next time."""
    while True:
        place = file.tell()
        line = file.readline()
        if not line.endswith("\n"):
            file.seek(place)
            return
        yield line


def _replaced(path: Path, file: IO[str]) -> bool:
    """Whether `path` is another file by now, or was emptied."""
    try:
        there = path.stat()
    except OSError:
        return False
    held = os.fstat(file.fileno())
    return there.st_ino != held.st_ino or there.st_size < file.tell()


def _last_of(path: Path, count: int) -> list[Entry]:
    """The last `count` entries of a file and what was rotated away from it."""
    found: list[Entry] = []
    older = sorted(path.parent.glob(f"{path.name}.*"), key=lambda p: p.suffix)
    for part in (path, *older):
        with part.open(encoding="utf-8", errors="replace") as file:
            found = [*entries(path.stem, file), *found]
        if len(found) >= count:
            break
    return found[max(len(found) - count, 0) :]


def _time(entry: Entry) -> str:
    return entry.time
