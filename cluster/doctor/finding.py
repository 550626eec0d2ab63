"""What an examination says of a node: fine, doubtful or broken, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "failure"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at. `node` is an address, a pair of them, or empty for all."""

    check: str
    node: str
    level: Level
    words: str
    fix: str = ""
