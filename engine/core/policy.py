"""Who waits ahead of whom."""

from __future__ import annotations

import heapq
from collections.abc import Callable

from ..sequence import Sequence

Rank = tuple[int, int, int]


def rank_of(policy: str) -> Callable[[Sequence], Rank]:
    """The order of sequences under `policy` (fcfs or priority), no two equal.

    Lower goes first, and is preempted last.
    """
    if policy == "priority":
        return lambda seq: (seq.request.priority, seq.arrival, seq.sibling)
    return lambda seq: (0, seq.arrival, seq.sibling)


class Waiting:
    """The sequences that wait for a place, best rank first.

    Adding costs the logarithm of their number, removing nothing.
    """

    def __init__(self, rank: Callable[[Sequence], Rank]) -> None:
        self._rank = rank
        self._heap: list[Rank] = []
        self._members: dict[Rank, Sequence] = {}

    def __len__(self) -> int:
        return len(self._members)

    def push(self, seq: Sequence) -> None:
        """Add a sequence."""
        rank = self._rank(seq)
        assert rank not in self._members
        self._members[rank] = seq
        heapq.heappush(self._heap, rank)

    def peek(self) -> Sequence | None:
        """The sequence of best rank, left where it is."""
        while self._heap and self._heap[0] not in self._members:
            heapq.heappop(self._heap)
        return self._members[self._heap[0]] if self._heap else None

    def remove(self, seq: Sequence) -> None:
        """Take a sequence out, wherever it stands; one that is not in is ignored."""
        self._members.pop(self._rank(seq), None)
