"""Siblings that take every step together: none goes on before all have said what could follow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..plan import Candidate
from ..request import FinishReason
from ..sequence import Family, Heir, Sequence, State
from .roster import Roster


def advance(roster: Roster, seq: Sequence, candidates: tuple[Candidate, ...]) -> bool:
    """Enter what could follow a sequence; once all have said so, the family takes the step.

    A sequence that goes on as another did takes over that one's blocks when it gets a place: it
    queues, and forks like any sibling. False when there is no next step.
    """
    family = seq.family
    assert family is not None
    seq.candidates = candidates
    if seq.state is State.WAITING:
        roster.rest(seq)  # it was preempted, and has nothing to compute until the step
    said = {
        i: member.candidates
        for i, member in enumerate(family.members)
        if member.candidates is not None
    }
    if len(said) < len(family.living):
        return True
    heirs = family.lockstep.advance(said)
    if not heirs:
        return False
    _step(roster, family, heirs)
    return True


def resting(seq: Sequence, among: Iterable[Sequence]) -> Sequence | None:
    """A sibling that has nothing to do until this sequence has said what could follow it."""
    return next((s for s in among if s.candidates is not None and s.family is seq.family), None)


def drop(roster: Roster, family: Family, sibling: int | None, reason: FinishReason) -> None:
    """Nobody waits for this answer any more, or for any; without one left the family ends."""
    dropped = set(family.wanted) if sibling is None else {sibling} & family.wanted
    family.wanted -= dropped
    roster.counters.finished[reason] += len(dropped)
    if not family.wanted:
        end(roster, family)


def end(roster: Roster, family: Family) -> None:
    """Give back all that a family holds."""
    for member in family.members:
        roster.dismiss(member)
    family.members.clear()  # they know their family: a cycle would keep their tokens in memory
    family.living.clear()


def _step(roster: Roster, family: Family, heirs: Mapping[int, Heir]) -> None:
    members = family.members
    family.living = [members[i] for i in sorted(heirs)]
    for i, member in enumerate(members):
        heir = heirs.get(i)
        if heir is not None and heir.parent != i:
            assert heirs[heir.parent].parent == heir.parent, "a parent continues itself"
            roster.take_over(member, members[heir.parent], heir.token)
        elif heir is None and member.candidates is not None:
            roster.rest(member)
    for i, member in enumerate(members):
        member.candidates = None
        if (heir := heirs.get(i)) is not None and heir.parent == i:
            roster.go_on(member, heir.token)
