"""Choices that have no replica, in the order in which they get one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .deaths import is_suspect
from .state import Choice
from .stream import Generation


@dataclass(slots=True, kw_only=True, eq=False)
class Waiting:
    """Choices, one or all beams of a generation, that have no replica since `since`.

    `reason` says why. Those that a replica has refused are not sent anew before `due`.
    """

    generation: Generation
    choices: Sequence[Choice]
    since: float
    reason: str
    due: float = 0.0

    @property
    def suspect(self) -> bool:
        """Whether it may be what kills engines."""
        return is_suspect(self.choices)


class WaitingLine:
    """All that wait in a gateway: suspects first, then the oldest."""

    def __init__(self) -> None:
        self._line: list[Waiting] = []

    def __len__(self) -> int:
        """Sequences that wait."""
        return sum(len(waiting.choices) for waiting in self._line)

    def join(self, waiting: Waiting) -> None:
        """Enter one more."""
        self._line.append(waiting)

    def serve(self, start: Callable[[Waiting], bool], give_up: Callable[[Waiting], bool]) -> None:
        """Start or give up each of them, or let it wait on.

        Where one waits on for room, those behind it that need the same weights do so too. Both
        calls tell whether it need not wait any more; they may let others join, which are not
        served yet.
        """
        line, self._line = self._line, []
        line.sort(key=lambda waiting: (not waiting.suspect, waiting.generation.began))
        full: set[tuple[str, str]] = set()
        for waiting in line:
            state = waiting.generation.state
            kind = (state.model, state.digest)
            if waiting.generation.ended:
                continue
            if kind in full:
                self._line.append(waiting)
            elif not start(waiting) and not give_up(waiting):
                self._line.append(waiting)
                if not waiting.suspect and not waiting.due:
                    full.add(kind)
