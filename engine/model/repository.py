"""One model on a hub, as the client of every hub shows it, and what is said of failures."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

Progress = Callable[[int, int], None]

DESCRIPTION = ("*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken")
"""What is fetched beside the weights: no code."""

UNWANTED = ("original/*", "onnx/*", "consolidated*")
FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedModel:
    """A model in the cache.

    `revision` is the commit, `refs` the branches and tags that point to it. `complete`: config.json
    and all files of the weights are there. `num_bytes` counts what other revisions share, too.
    """

    name: str
    revision: str
    refs: tuple[str, ...]
    path: Path
    num_bytes: int
    complete: bool


class Repository(Protocol):
    """One model at one revision on a hub. All but `reason` raise whatever the hub's client does."""

    @property
    def place(self) -> Path:
        """The folder that holds the cache."""
        ...

    def cached(self) -> Path | None:
        """The snapshot in the cache, whole or not, without the network."""
        ...

    def sizes(self) -> Mapping[str, int]:
        """The repository's files and their bytes, 0 where the hub does not say."""
        ...

    def describe(self) -> Path:
        """Fetch all but weights and code; the snapshot's folder."""
        ...

    def download(self, folder: Path, names: Sequence[str], on_progress: Progress | None) -> None:
        """Fetch files of the snapshot `folder`."""
        ...

    def reason(self, error: Exception) -> str:
        """What went wrong, in plain words, and the way out."""
        ...


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and what it came from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def is_full(error: BaseException) -> bool:
    """Whether the disk, or the user's part of it, is full."""
    number = error.errno if isinstance(error, OSError) else None
    return number in FULL or os.strerror(errno.ENOSPC) in str(error)
