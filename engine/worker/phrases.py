"""Bad words of several tokens, and which of them a text has begun."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np


class Phrases:
    """Phrases of at least two token ids each, by the one before the last.

    `reach` is how many tokens the longest has before its last.
    """

    def __init__(self, phrases: Iterable[Sequence[int]]) -> None:
        self.reach = 0
        self._begun: dict[int, list[tuple[bytes, int]]] = {}
        for *beginning, last in phrases:
            self.reach = max(self.reach, len(beginning))
            begun = self._begun.setdefault(beginning[-1], [])
            begun.append((array("i", beginning).tobytes(), last))

    def completing(self, emitted: np.ndarray[Any, Any]) -> list[int]:
        """The tokens that would complete a phrase behind these [n] int32, the last of a text."""
        if not len(emitted):
            return []
        text, begun = emitted.tobytes(), self._begun.get(int(emitted[-1]), ())
        return [last for beginning, last in begun if text.endswith(beginning)]
