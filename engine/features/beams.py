"""Beam search: which of the sequences that a request could say are worth following.

At each step every beam says which tokens could follow it. The best continuations of all of them
together are the next beams; those that end are kept as finished, if they are good enough. Scores
are sums of log probabilities; finished ones are compared by score / length ** length_penalty,
where the length is that of the output. Rules and the choice of the end are those of transformers'
`generate(num_beams=...)`, so that both say the same.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

from ..plan import Candidate
from ..request import FinishReason, Request, SamplingParams, TokenLogprobs
from ..sequence import Ending, Heir, Lockstep


class _Beam(NamedTuple):
    """A sequence under way, in the place of the sibling `member`."""

    member: int
    score: float = 0.0
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()


class _Child(NamedTuple):
    """A beam and a token that could follow it. The greatest is the best, of equals the first one of
    the best beam.
    """

    score: float
    minus_rank: int
    minus_place: int
    beam: _Beam
    candidate: Candidate

    def grown(self) -> _Beam:
        """The beam with that token."""
        return _Beam(
            self.beam.member,
            self.score,
            (*self.beam.tokens, self.candidate.token),
            (*self.beam.logprobs, self.candidate.logprobs),
        )


class _Finished(NamedTuple):
    """A sequence that has ended, and what it is worth."""

    value: float
    ending: Ending


class BeamSearch:
    """One request's search; a `Lockstep` of as many members as there are beams.

    `ends` are the tokens that end a sequence, True for those that are a reason to tell; after
    `most` tokens every one ends. A beam tells its `num_candidates` best continuations: among them
    are as many that go on as there are beams, though each end came before them.
    """

    def __init__(self, params: SamplingParams, ends: Mapping[int, bool], most: int) -> None:
        self.num_members = params.width
        self.num_candidates = params.width + len(ends)
        self._params = params
        self._ends = ends
        self._most = most
        self._length = 0
        self._beams = [_Beam(0)]  # best first
        self._finished: list[_Finished] = []  # best first

    def advance(self, candidates: Mapping[int, tuple[Candidate, ...]]) -> dict[int, Heir]:
        """See Lockstep."""
        self._length += 1
        children = [
            _Child(beam.score + candidate.score, -rank, -place, beam, candidate)
            for rank, beam in enumerate(self._beams)
            for place, candidate in enumerate(candidates[beam.member])
        ]
        over = self._length >= self._most
        for child in self._best(children):
            if over or child.candidate.token in self._ends:
                self._finish(child.grown())
        going = [
            child for child in children if not over and child.candidate.token not in self._ends
        ]
        return self._seat([child.grown() for child in self._best(going)])

    def endings(self) -> tuple[Ending, ...]:
        """See Lockstep."""
        return tuple(finished.ending for finished in self._finished[: self._params.n])

    def _best(self, children: list[_Child]) -> list[_Child]:
        """As many of them as there are beams, best first."""
        return heapq.nlargest(self.num_members, children, key=lambda child: child[:3])

    def _finish(self, beam: _Beam) -> None:
        last = beam.tokens[-1]
        ended = last in self._ends
        ending = Ending(
            beam.tokens,
            beam.logprobs,
            FinishReason.STOP if ended else FinishReason.LENGTH,
            last if ended and self._ends[last] else None,
        )
        value = self._worth(beam.score, self._length)
        self._finished.append(_Finished(value, ending))
        self._finished.sort(key=lambda finished: -finished.value)
        del self._finished[self.num_members :]

    def _seat(self, beams: list[_Beam]) -> dict[int, Heir]:
        """Give each beam a sibling to go on in: the first child of a beam stays where that was, and
        the others go where nobody stays.
        """
        if not beams or self._decided(beams[0].score):
            return {}
        parents = {beam.member for beam in beams}
        free = (member for member in range(self.num_members) if member not in parents)
        heirs: dict[int, Heir] = {}
        self._beams = []
        for beam in beams:
            member = beam.member if beam.member not in heirs else next(free)
            heirs[member] = Heir(beam.member, beam.tokens[-1])
            self._beams.append(beam._replace(member=member))
        return heirs

    def _decided(self, best_score: float) -> bool:
        """Whether no beam is expected to better the finished ones."""
        if len(self._finished) < self.num_members:
            return False
        params = self._params
        if params.early_stopping is True:
            return True
        longest = params.early_stopping == "never" and params.length_penalty > 0
        length = self._most if longest else self._length
        return self._worth(best_score, length) <= self._finished[-1].value

    def _worth(self, score: float, length: int) -> float:
        return score / math.pow(length, self._params.length_penalty)


def search_of(eos_token_ids: frozenset[int]) -> Callable[[Request, int], Lockstep | None]:
    """What begins the search of a request, given how many tokens its answer may have; None for one
    that asks for none.
    """

    def begin(request: Request, most: int) -> Lockstep | None:
        params = request.params
        if not params.use_beam_search:
            return None
        return BeamSearch(params, params.ends(eos_token_ids), most)

    return begin
