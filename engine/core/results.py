"""What a finished step means to its sequences: their books kept, their updates made."""

from __future__ import annotations

from ..plan import Result, Row
from ..request import FinishReason, TokenLogprobs, Update
from ..sequence import Ending, Family, Sequence, State
from . import lockstep
from .roster import Roster

_NO_ENDING = Ending((), (), FinishReason.ERROR)


def take(
    roster: Roster,
    seq: Sequence,
    row: Row,
    tokens: tuple[int, ...],
    logprobs: tuple[TokenLogprobs, ...],
    result: Result,
) -> Update | None:
    """Enter what one row brought into the sequence's book."""
    if result.failed and row.slot in result.failed:
        roster.finish(seq, FinishReason.ERROR)
        return _update(roster, seq, (), (), FinishReason.ERROR, error=result.failed[row.slot])
    if result.prompt_logprobs:
        _score_prompt(seq, row, result.prompt_logprobs.get(row.slot, ()))
    accepted, finish, stop = seq.accept(tokens)
    roster.counters.generation_tokens += accepted
    if seq.slot == row.slot:
        _written(roster, seq, row)
    if not accepted and finish is None:
        if seq.limit > seq.num_prompt or seq.written < seq.num_prompt:
            return None
        finish = FinishReason.LENGTH  # it was to be computed only
    if finish is not None:
        roster.finish(seq, finish)
    return _update(roster, seq, tokens[:accepted], logprobs[:accepted], finish, stop)


def take_in_lockstep(roster: Roster, seq: Sequence, row: Row, result: Result) -> list[Update]:
    """Enter what a row brought a sibling in lockstep; the answers of all at the end."""
    family = seq.family
    assert family is not None
    if seq.state is State.FINISHED:
        return []
    if row.slot in result.failed:
        return _end_family(roster, family, (), result.failed[row.slot])
    _score_prompt(seq, row, result.prompt_logprobs.get(row.slot, ()))
    if seq.slot == row.slot:
        _written(roster, seq, row)
    if not row.sample:
        return []
    roster.counters.generation_tokens += 1
    if lockstep.advance(roster, seq, result.candidates[row.slot]):
        return []
    return _end_family(roster, family, family.lockstep.endings())


def _end_family(
    roster: Roster, family: Family, endings: tuple[Ending, ...], error: str | None = None
) -> list[Update]:
    """Give the answers that are wanted; without an ending an answer is an error."""
    first, request = family.members[0], family.members[0].request
    updates = []
    for number in sorted(family.wanted):
        place = number - request.sibling
        end = endings[place] if place < len(endings) else _NO_ENDING
        reason = error or f"only {len(endings)} of {request.params.n} answers can be made"
        update = _update(
            roster,
            first,
            end.tokens,
            end.logprobs if request.params.logprobs is not None else (),
            end.finish,
            end.stop_reason,
            reason if end.finish is FinishReason.ERROR else None,
        )
        updates.append(update._replace(sibling=number, num_cached=first.num_cached or 0))
        roster.counters.finished[end.finish] += 1
    lockstep.end(roster, family)
    return updates


def _written(roster: Roster, seq: Sequence, row: Row) -> None:
    """A row's keys and values are in the cache: let others find them, and siblings begin."""
    before, seq.written = seq.written, row.start + row.num_tokens
    roster.kv.publish(seq)
    if before < seq.num_prompt:
        roster.counters.prompt_tokens += min(seq.written, seq.num_prompt) - before
        if seq.written >= seq.num_prompt:
            roster.prompt_done(seq)


def _score_prompt(seq: Sequence, row: Row, scores: tuple[TokenLogprobs, ...]) -> None:
    """Keep prompt log probabilities by position, so that a preemption repeats none."""
    if scores and seq.prompt_logprobs is not None:
        first = row.start + 1
        seq.prompt_logprobs[first : first + len(scores)] = scores


def _update(
    roster: Roster,
    seq: Sequence,
    tokens: tuple[int, ...],
    logprobs: tuple[TokenLogprobs, ...],
    finish: FinishReason | None,
    stop: int | None = None,
    error: str | None = None,
) -> Update:
    request = seq.request
    scored = cached = waits = None
    if not seq.told:
        seq.told = True
        scored = None if seq.prompt_logprobs is None else tuple(seq.prompt_logprobs)
        cached, waits = seq.num_cached or 0, seq.waits(roster.now)
    return Update(
        request.id,
        seq.sibling,
        tokens,
        logprobs or None,
        scored,
        cached,
        finish,
        stop,
        error,
        request.epoch,
        waits,
    )
