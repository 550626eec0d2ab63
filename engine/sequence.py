"""The scheduler's book on one generation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import NamedTuple, Protocol

from .plan import Candidate
from .request import FinishReason, Request, TokenLogprobs, Waits

Rank = tuple[int, int, int]


class State(Enum):
    """Prefill and decode are not states: they are only how far `computed` has come."""

    WAITING = auto()
    RUNNING = auto()
    FINISHED = auto()


_MOVES = {
    State.WAITING: {State.RUNNING, State.FINISHED},
    State.RUNNING: {State.WAITING, State.FINISHED},
    State.FINISHED: set(),
}


class Heir(NamedTuple):
    """What a sibling becomes: the sibling `parent` as it is, and `token` after it."""

    parent: int
    token: int


class Ending(NamedTuple):
    """One answer of siblings in lockstep, whole."""

    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...]
    finish: FinishReason
    stop_reason: int | None = None


class Lockstep(Protocol):
    """Decides how siblings go on that take every step together.

    Member 0 computes the prompt; the others come into being with the first step.
    """

    num_members: int
    num_candidates: int

    def advance(self, candidates: Mapping[int, tuple[Candidate, ...]]) -> dict[int, Heir]:
        """From what could follow each living member, what each member becomes; nothing at the end.

        A member that is somebody's parent continues itself.
        """
        ...

    def endings(self) -> tuple[Ending, ...]:
        """The answers, best first, once `advance` has returned nothing."""
        ...


@dataclass(slots=True, kw_only=True, eq=False)
class Family:
    """Siblings in lockstep.

    `living` are those that have yet to take the present step; `wanted` numbers the answers that
    somebody still waits for.
    """

    lockstep: Lockstep
    members: list[Sequence]
    living: list[Sequence]
    wanted: set[int]


@dataclass(slots=True, kw_only=True, eq=False)
class Sequence:
    """Mutable, with one owner: the scheduler.

        tokens    known ids: prompt, then emitted
        computed  tokens whose keys and values are in the cache, or will be once the plans under way
        are done
        expected  tokens sampled by plans under way, their ids not known yet
        written   tokens whose keys and values are in the cache for certain

    `blocks[g]` lists the blocks of cache group g by position; a block that left its window is 0.
    `keys` are the prefix-cache keys of the full blocks so far. `blockers` names what a waiting
    sequence waits for: who puts a word in takes it out. When it first gets a place, it takes over
    the first `shared` tokens' keys and values from its `leader`, as far as that one has them; later
    it has its own in the prefix cache, and no leader.

    `ends` are the tokens that end it, and whether each is told as its stop token.
    `rank` is its place in the order of the policy; it never changes.
    `arrived` and `entered` (its first slot) are times of the roster's clock, `owed` the tokens that
    the roster counts for it while it has no slot.

    In a `family`, a sequence never runs ahead of its known tokens. `candidates` is what could
    follow it, from when it is known until the family has taken the step.
    """

    request: Request
    sibling: int
    rank: Rank
    tokens: list[int]
    num_prompt: int
    limit: int
    ends: Mapping[int, bool] = field(default_factory=dict)
    computed: int = 0
    owed: int = 0
    written: int = 0
    expected: int = 0
    in_flight: int = 0
    last_step: int = -1
    sent: int = 0
    leader: Sequence | None = None
    shared: int = 0
    family: Family | None = None
    candidates: tuple[Candidate, ...] | None = None
    blocks: list[list[int]] = field(default_factory=list)
    published: int = 0
    keys: list[bytes] = field(default_factory=list)
    blockers: set[str] = field(default_factory=set)
    slot: int = -1
    state: State = State.WAITING
    finish: FinishReason | None = None
    arrived: float = 0.0
    entered: float | None = None
    num_cached: int | None = None
    told: bool = False
    prompt_logprobs: list[TokenLogprobs | None] | None = None

    @property
    def behind(self) -> int:
        """How many tokens, known or expected, have no keys and values yet."""
        return len(self.tokens) + self.expected - self.computed

    @property
    def due(self) -> int:
        """Those of them that it will compute itself; one that will fork has its leader's."""
        return self.behind if self.leader is None else 1

    def accept(self, tokens: tuple[int, ...]) -> tuple[int, FinishReason | None, int | None]:
        """Append sampled tokens up to the first that ends it.

        Their number, why it ends, the stop token.
        """
        known, ends = self.tokens, self.ends
        for num, token in enumerate(tokens, start=1):
            known.append(token)
            if token in ends:
                return num, FinishReason.STOP, token if ends[token] else None
            if len(known) >= self.limit:
                return num, FinishReason.LENGTH, None
        return len(tokens), None, None

    def waits(self, now: float) -> Waits | None:
        """What it waited for, where its first token came `now`; None where it never had a slot."""
        if self.entered is None:
            return None
        return Waits(self.entered - self.arrived, now - self.entered)

    def to(self, state: State) -> None:
        """Move to `state`; a move outside the table is a bug."""
        assert state in _MOVES[self.state], f"{self.request.id}: {self.state} -> {state}"
        self.state = state
