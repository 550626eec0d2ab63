"""Which tokens the next step computes; `results` says what a finished one means.

There is no prefill phase and no decode phase: each step, `computed` catches up with `tokens` under
one token budget. Chunked prefill, prefix hits, preemption by recompute and resumption all follow
from that.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from itertools import repeat

from ..config import EngineConfig
from ..errors import ConfigError
from ..executor import Capacity
from ..plan import Copy, Plan, Result, Row, Start
from ..request import FinishReason, Request, Update
from ..sequence import Sequence, State
from . import lockstep, results
from .kv import Shortage
from .roster import BY_RANK, Counters, LockstepOf, Roster, alone


@dataclass(slots=True)
class _Draft:
    """A plan in the making. `prompts`: how much of the budget prompts may have."""

    budget: int
    prompts: int
    places: int
    rows: list[Row] = field(default_factory=list)
    seqs: list[Sequence] = field(default_factory=list)
    started: list[Start] = field(default_factory=list)
    copies: list[Copy] = field(default_factory=list)

    @property
    def room(self) -> int:
        """How many tokens of a prompt it still takes."""
        return min(self.budget, self.prompts)


@dataclass(frozen=True, slots=True)
class _UnderWay:
    """A plan submitted and not yet committed."""

    step: int
    rows: tuple[Row, ...]
    seqs: list[Sequence]


Grown = tuple[tuple[int, ...], ...]
"""The new blocks of each cache group; () where there are none."""


class Scheduler:
    """Owns every sequence and the books on blocks and slots.

    `schedule` and `commit` alternate freely, up to `depth` plans ahead, and commits come in the
    order of the plans. A slot and its blocks go back when the last plan that touches them is
    committed. `resident` is the executor's.
    """

    def __init__(
        self,
        config: EngineConfig,
        capacity: Capacity,
        *,
        depth: int = 1,
        resident: bool = True,
        lockstep_of: LockstepOf = alone,
    ) -> None:
        self.roster = Roster(config, capacity, lockstep_of)
        self.kv, self.counters = self.roster.kv, self.roster.counters
        self._budget = capacity.step_tokens
        self._prompts = capacity.prompt_tokens or self._budget
        self._chunked = config.enable_chunked_prefill
        self._depth, self._resident = depth, resident
        if not self._chunked and self._budget < capacity.max_model_len:
            raise ConfigError(
                f"max_num_batched_tokens ({self._budget}) must be at least max_model_len "
                f"({capacity.max_model_len}) where enable_chunked_prefill is false",
                "max_num_batched_tokens",
            )
        self._spare = min(capacity.num_blocks) // 100
        self._plans: deque[_UnderWay] = deque()
        self._step = 0
        self._stuck: Shortage | None = None

    # What others ask.

    @property
    def num_running(self) -> int:
        """Sequences that hold a slot."""
        return len(self.roster.running)

    @property
    def num_waiting(self) -> int:
        """Sequences that hold none."""
        return self.roster.num_waiting

    @property
    def num_deferred(self) -> int:
        """Those that hold none and want none before something else has happened."""
        return self.roster.num_deferred

    @property
    def num_behind(self) -> int:
        """Tokens yet to be computed until each sequence has its next one."""
        return self.roster.num_behind

    @property
    def unfinished(self) -> bool:
        """Whether any sequence still wants tokens, or a plan is under way."""
        return bool(self.roster.live or self._plans)

    @property
    def kv_usage(self) -> float:
        """Share of KV blocks held, 0 to 1."""
        return self.kv.usage

    def verify(self) -> None:
        """Assert that the books balance: every block and slot is either free or accounted for."""
        self.roster.verify(idle=not self.unfinished)

    def tell_time(self, now: float) -> None:
        """The time in seconds, from any start; it holds until it is told again."""
        self.roster.now = now

    def count_anew(self) -> None:
        """Forget what was counted so far."""
        self.counters = self.roster.counters = Counters()

    # Requests come and go.

    def add(self, request: Request) -> None:
        """Take on a request, whose lengths the caller has checked and whose seed is set."""
        self.roster.add(request)

    def abort(
        self,
        request_id: str,
        sibling: int | None = None,
        reason: FinishReason = FinishReason.ABORT,
    ) -> None:
        """Drop a request, or one of its siblings; it counts as ended for `reason`.

        No update of it follows. An unknown id is ignored.
        """
        live = list(self.roster.live.get(request_id, ()))
        if live and (family := live[0].family) is not None:
            lockstep.drop(self.roster, family, sibling, reason)
            return
        for seq in live:
            if sibling is None or seq.sibling == sibling:
                self.roster.finish(seq, reason)

    # One step.

    def schedule(self) -> Plan | None:
        """The next plan, or None where nothing can be computed before a commit."""
        draft = self._draft()
        while not draft.rows and not self._plans and self.roster.make_room():
            draft = self._draft()
        if not draft.rows:
            return None
        plan = Plan(
            step=self._step,
            stopped=tuple(self.roster.stopped),
            started=tuple(draft.started),
            rows=tuple(draft.rows),
            copies=tuple(draft.copies),
        )
        self.roster.stopped.clear()
        self._plans.append(_UnderWay(self._step, plan.rows, draft.seqs))
        self._step += 1
        self.counters.count_step(self._budget - draft.budget)
        return plan

    def commit(self, result: Result) -> list[Update]:
        """Take in the result of the oldest plan under way.

        What each of its sequences gained, in its rows' order.
        """
        plan = self._plans.popleft()
        assert plan.step == result.step, f"result of step {result.step}, expected {plan.step}"
        sampled = zip(result.tokens, result.logprobs or repeat(()), strict=False)
        updates = []
        for row, seq in zip(plan.rows, plan.seqs, strict=True):
            seq.in_flight -= 1
            if seq.blockers:
                self.roster.landed(seq)
            tokens, logprobs = next(sampled) if row.sample else ((), ())
            if seq.family is not None:
                updates += results.take_in_lockstep(self.roster, seq, row, result)
                continue
            seq.expected -= row.sample
            if seq.state is State.FINISHED:
                continue
            update = results.take(self.roster, seq, row, tokens, logprobs, result)
            if update is not None:
                updates.append(update)
        self.roster.give_back(plan.step)
        return updates

    # Scheduling.

    def _draft(self) -> _Draft:
        draft = _Draft(self._budget, self._prompts, self._places())
        before = self.counters.preemptions
        self._continue(draft)
        if self.counters.preemptions == before:
            self._admit(draft)
        return draft

    def _places(self) -> int:
        """How many running sequences a plan may take.

        Where a row cannot be in flight twice, each of `depth` plans takes its share of them.
        """
        if self._resident:
            return len(self.roster.slots) + len(self.roster.running)
        return -(-max(1, len(self.roster.running)) // self._depth)

    def _wanted(self, seq: Sequence) -> int:
        """How many tokens of a running sequence could be computed now."""
        known = len(seq.tokens)
        reached = known + seq.expected
        if reached >= seq.limit and reached > seq.num_prompt:
            return 0
        return (reached if self._resident else max(known, seq.computed)) - seq.computed

    def _continue(self, draft: _Draft) -> None:
        """Rows for the running sequences, best rank first: what a row takes blocks from ranks
        behind it.
        """
        for seq, num, of_prompts in self._dealt(draft):
            if seq.slot < 0:
                continue
            grown: Grown | None = ()
            if seq.computed + num > len(seq.blocks[0]) * self.kv.block_size:
                grown = self._reserve(seq, seq.computed + num, draft)
            if grown is not None:
                draft.places -= 1
                draft.prompts -= num if of_prompts else 0
                self._row(draft, seq, num, grown)

    def _dealt(self, draft: _Draft) -> list[tuple[Sequence, int, bool]]:
        """What each running sequence has of a step, by rank, and whether it is of prompts' share.

        Those one token behind are dealt theirs first, so that no prompt can starve them.
        """
        ones, more = [], []
        for seq in sorted(self.roster.running.values(), key=BY_RANK):
            num = self._wanted(seq)
            if num == 1:
                ones.append((seq, 1, False))
            elif num:
                more.append((seq, num))
        dealt = ones[: min(draft.budget, draft.places)]
        room = min(draft.budget - len(dealt), draft.prompts)
        for seq, wanted in more[: draft.places - len(dealt)]:
            if num := min(wanted, room):
                room -= num
                dealt.append((seq, num, True))
        return sorted(dealt, key=lambda share: share[0].rank) if more else dealt

    def _reserve(self, seq: Sequence, upto: int, draft: _Draft) -> Grown | None:
        """Blocks for a running sequence, at the cost of those that rank behind it."""
        while (grown := self.kv.reserve(seq, upto)) is None:
            if self.roster.drop_estates():
                continue
            if self.roster.held:
                return None
            planned = set(map(id, draft.seqs))
            idle = [s for s in self.roster.running.values() if id(s) not in planned]
            victim = max(idle, key=BY_RANK)
            if victim is seq:
                victim = lockstep.resting(seq, idle) or seq
            self.roster.preempt(victim)
            if victim is seq:
                return None
        return grown

    def _admit(self, draft: _Draft) -> None:
        """Rows for waiting sequences, best rank first, while budget, slots and blocks last."""
        while draft.room and self.roster.slots and (seq := self.roster.waiting.peek()):
            if self._stuck and self.roster.running and self._stuck.lasts(seq, self.kv):
                return
            copies = self._prepare(seq)
            num = min(seq.behind, draft.room)
            spare = self._spare if self.roster.running else 0
            whole = self._chunked or num == seq.behind
            if not whole or self.kv.reserve(seq, seq.computed + num, spare) is None:
                short = self.kv.give_up(seq, seq.computed + num, spare)
                self._stuck = short if whole else None
                seq.computed = 0
                return
            self.roster.enter(seq)
            draft.copies += copies
            draft.started.append(_start(seq))
            draft.prompts -= num
            self._row(draft, seq, num, ())

    def _prepare(self, seq: Sequence) -> list[Copy]:
        """Give a waiting sequence what is there already: a sibling's prompt, or a cached prefix."""
        leader, copies = seq.leader, None
        if leader is not None and leader.blocks and leader.written >= seq.shared:
            copies = self.kv.fork(leader, seq)
        if copies is not None:
            seq.computed = seq.shared
        else:
            seq.computed = self.kv.match(seq)
        return copies or []

    def _row(self, draft: _Draft, seq: Sequence, num: int, grown: Grown) -> None:
        known, start, alone = seq.tokens, seq.computed, seq.family is None
        length = len(known) + seq.expected
        sample = start + num == length and length < seq.limit
        fresh = () if self._resident and alone else tuple(known[seq.sent :])
        draft.rows.append(Row(seq.slot, start, num, grown, sample, fresh))
        draft.seqs.append(seq)
        draft.budget -= num
        seq.sent = len(known)
        seq.computed = start + num
        seq.expected += sample and alone
        seq.in_flight += 1
        seq.last_step = self._step


def _start(seq: Sequence) -> Start:
    """What the workers are told of a sequence that has just entered its slot."""
    return Start(
        slot=seq.slot,
        tokens=tuple(seq.tokens),
        num_prompt=seq.num_prompt,
        blocks=tuple(map(tuple, seq.blocks)),
        params=seq.request.params,
        sibling=seq.sibling,
        adapter=seq.request.adapter,
        candidates=0 if seq.family is None else seq.family.lockstep.num_candidates,
    )
