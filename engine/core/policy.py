"""Who waits ahead of whom."""

from __future__ import annotations

import heapq

from ..request import Request
from ..sequence import Rank, Sequence


def rank(policy: str, request: Request, arrival: int, sibling: int) -> Rank:
    """A sequence's place in the order under `policy` (fcfs or priority), no two equal.

    Lower goes first, and is preempted last.
    """
    return (request.priority if policy == "priority" else 0, arrival, sibling)


class Waiting:
    """The sequences that wait for a place, best rank first.

    Adding costs the logarithm of their number, removing nothing: a rank that is left behind goes
    when it comes to the top, or with all others of its kind once they are more than those in use.
    """

    def __init__(self) -> None:
        self._heap: list[Rank] = []
        self._members: dict[Rank, Sequence] = {}

    def __len__(self) -> int:
        return len(self._members)

    def push(self, seq: Sequence) -> None:
        """Add a sequence."""
        assert seq.rank not in self._members
        self._members[seq.rank] = seq
        heapq.heappush(self._heap, seq.rank)

    def peek(self) -> Sequence | None:
        """The sequence of best rank, left where it is."""
        while self._heap and self._heap[0] not in self._members:
            heapq.heappop(self._heap)
        return self._members[self._heap[0]] if self._heap else None

    def remove(self, seq: Sequence) -> None:
        """Take a sequence out, wherever it stands; one that is not in is ignored."""
        self._members.pop(seq.rank, None)
        if len(self._heap) > 2 * len(self._members):
            self._heap = [*self._members]
            heapq.heapify(self._heap)
