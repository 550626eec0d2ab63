"""The line of those that wait: its order, and what it keeps of those that have left it."""

from __future__ import annotations

import random

from shoal.engine.core.policy import Waiting
from shoal.engine.request import Request
from shoal.engine.sequence import Sequence


def sequence(priority: int, arrival: int) -> Sequence:
    request = Request(id=str(arrival), prompt=(1,), priority=priority)
    rank = (priority, arrival, 0)
    return Sequence(request=request, sibling=0, rank=rank, tokens=[1], num_prompt=1, limit=9)


def test_what_leaves_from_behind_the_first_is_not_kept() -> None:
    line, first = Waiting(), sequence(0, 0)
    line.push(first)
    for arrival in range(1, 1000):
        late = sequence(1, arrival)
        line.push(late)
        line.remove(late)
        assert line.peek() is first and len(line._heap) <= 3


def test_the_best_is_first_whoever_comes_and_goes() -> None:
    draw = random.Random(3)
    line = Waiting()
    there: list[Sequence] = []
    for arrival in range(3000):
        if there and draw.random() < 0.5:
            gone = there.pop(draw.randrange(len(there)))
            line.remove(gone)
            if draw.random() < 0.3:  # as a preempted one
                there.append(gone)
                line.push(gone)
        else:
            there.append(sequence(draw.randrange(5), arrival))
            line.push(there[-1])
        assert line.peek() is min(there, key=lambda seq: seq.rank, default=None)
        assert len(line) == len(there)
