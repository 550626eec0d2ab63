"""Which tokens the next step computes, and what a finished step means.

There is no prefill phase and no decode phase: each step, `computed` catches up with `tokens` under
one token budget. Chunked prefill, prefix hits, preemption by recompute and resumption all follow
from that.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import repeat

from ..config import EngineConfig
from ..errors import ConfigError
from ..executor import Capacity
from ..plan import Copy, Plan, Result, Row, Start
from ..request import FinishReason, Request, TokenLogprobs, Update
from ..sequence import Sequence, State
from .kv import BlockLists, KVManager
from .policy import Waiting, rank_of


@dataclass(slots=True)
class Counters:
    """What has happened since the start, in tokens and times."""

    steps: int = 0
    prompt_tokens: int = 0  # computed, so neither cached ones nor any twice but after preemption
    generation_tokens: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    preemptions: int = 0
    finished: dict[FinishReason, int] = field(
        default_factory=lambda: dict.fromkeys(FinishReason, 0)
    )


@dataclass(slots=True)
class _Draft:
    """A plan in the making."""

    budget: int
    places: int
    rows: list[Row] = field(default_factory=list)
    seqs: list[Sequence] = field(default_factory=list)
    started: list[Start] = field(default_factory=list)
    copies: list[Copy] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _UnderWay:
    """A plan submitted and not yet committed."""

    step: int
    rows: tuple[Row, ...]
    seqs: list[Sequence]


class Scheduler:
    """Owns every sequence and the books on blocks and slots.

    `schedule` and `commit` alternate freely, up to `depth` plans ahead, and commits come in the
    order of the plans. A slot and its blocks go back when the last plan that touches them is
    committed. `resident` is the executor's.
    """

    def __init__(
        self, config: EngineConfig, capacity: Capacity, *, depth: int = 1, resident: bool = True
    ) -> None:
        self.kv = KVManager(capacity, caching=config.enable_prefix_caching)
        self.counters = Counters()
        self._budget = config.batched_tokens
        self._chunked = config.enable_chunked_prefill
        self._depth, self._resident = depth, resident
        self._max_len = capacity.max_model_len
        if not self._chunked and self._budget < self._max_len:
            raise ConfigError(
                f"max_num_batched_tokens ({self._budget}) must be at least max_model_len "
                f"({self._max_len}) where enable_chunked_prefill is false",
                "max_num_batched_tokens",
            )
        self._eos = capacity.eos_token_ids
        self._rank = rank_of(config.scheduling_policy)
        self._spare = min(capacity.num_blocks) // 100
        self._live: dict[str, list[Sequence]] = {}
        self._waiting = Waiting(self._rank)
        self._blocked = 0
        self._running: dict[int, Sequence] = {}
        self._slots = list(range(config.max_num_seqs - 1, -1, -1))
        self._stopped: list[int] = []
        self._held: list[tuple[int, int, BlockLists]] = []
        self._plans: deque[_UnderWay] = deque()
        self._step = self._arrivals = 0
        self._stuck: tuple[Sequence, int] | None = None

    # What others ask.

    @property
    def num_running(self) -> int:
        """Sequences that hold a slot."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Sequences that hold none."""
        return len(self._waiting) + self._blocked

    @property
    def unfinished(self) -> bool:
        """Whether any sequence still wants tokens, or a plan is under way."""
        return bool(self._live or self._plans)

    @property
    def kv_usage(self) -> float:
        """Share of KV blocks held, 0 to 1."""
        return self.kv.usage

    def requests(self) -> list[str]:
        """The ids of unfinished requests."""
        return list(self._live)

    # Requests come and go.

    def add(self, request: Request) -> None:
        """Take on a request: `params.n` sequences, of which all but the first wait for its prompt
        to be computed.

        The caller has checked that prompt and output fit, and that the seed is set.
        """
        params = request.params
        total = len(request.prompt) + len(request.emitted)
        assert request.id not in self._live, f"{request.id} is known already"
        assert request.prompt and total < self._max_len, "the door checks lengths"
        assert not request.emitted or params.n == 1, "siblings are resumed one by one"
        limit = self._max_len
        if params.max_tokens is not None:
            limit = min(limit, len(request.prompt) + params.max_tokens)
        assert not request.emitted or total < limit, "nothing is left to generate"
        family = [
            Sequence(
                request=request,
                sibling=request.sibling + i,
                arrival=self._arrivals,
                tokens=[*request.prompt, *request.emitted],
                num_prompt=len(request.prompt),
                limit=limit,
            )
            for i in range(params.n)
        ]
        if params.prompt_logprobs is not None:
            family[0].prompt_logprobs = [None] * len(request.prompt)
        self._arrivals += 1
        self._live[request.id] = list(family)
        self._waiting.push(family[0])
        for seq in family[1:]:
            seq.leader = family[0]
            self._block(seq, "sibling")

    def abort(self, request_id: str, sibling: int | None = None) -> None:
        """Drop a request, or one of its siblings.

        No update of it follows. An unknown id is ignored.
        """
        for seq in list(self._live.get(request_id, ())):
            if sibling is None or seq.sibling == sibling:
                self._finish(seq, FinishReason.ABORT)

    # One step.

    def schedule(self) -> Plan | None:
        """The next plan, or None where nothing can be computed before a commit."""
        draft = _Draft(self._budget, self._places())
        before = self.counters.preemptions
        self._continue(draft)
        if self.counters.preemptions == before:
            self._admit(draft)
        if not draft.rows:
            return None
        plan = Plan(
            step=self._step,
            stopped=tuple(self._stopped),
            started=tuple(draft.started),
            rows=tuple(draft.rows),
            copies=tuple(draft.copies),
        )
        self._stopped.clear()
        self._plans.append(_UnderWay(self._step, plan.rows, draft.seqs))
        self._step += 1
        self.counters.steps += 1
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
            tokens, logprobs = next(sampled) if row.sample else ((), ())
            seq.expected -= row.sample
            update = self._advance(seq, row, tokens, logprobs, result)
            if update is not None:
                updates.append(update)
            if "flight" in seq.blockers and not seq.in_flight:
                self._unblock(seq, "flight")
        self._give_back(plan.step)
        return updates

    def verify(self) -> None:
        """Assert that the books balance: every block and slot is either free or accounted for."""
        holders = [s.blocks for family in self._live.values() for s in family if s.blocks]
        self.kv.verify([*holders, *(blocks for _, _, blocks in self._held)])
        slots = [*self._slots, *self._running, *(slot for _, slot, _ in self._held)]
        assert len(slots) == len(set(slots)), "a slot is accounted for twice"
        assert all(seq.slot == slot for slot, seq in self._running.items())
        states = [seq.state for family in self._live.values() for seq in family]
        assert State.FINISHED not in states
        assert states.count(State.RUNNING) == len(self._running)
        assert states.count(State.WAITING) == self.num_waiting
        if not self.unfinished:
            assert not self._held and not self._running and not self.num_waiting
            assert all(g.num_free == g.num_blocks - 1 for g in self.kv.groups)

    # Scheduling.

    def _places(self) -> int:
        """How many running sequences a plan may take.

        Where a row cannot be in flight twice, each of `depth` plans takes its share of them.
        """
        if self._resident:
            return len(self._slots) + len(self._running)
        return -(-max(1, len(self._running)) // self._depth)

    def _wanted(self, seq: Sequence) -> int:
        """How many tokens of a running sequence could be computed now."""
        produced = seq.num_emitted + seq.expected
        if produced > 0 and len(seq.tokens) + seq.expected >= seq.limit:
            return 0
        return seq.behind if self._resident else max(0, len(seq.tokens) - seq.computed)

    def _continue(self, draft: _Draft) -> None:
        """Rows for the running sequences.

        Those one token behind first, so that no prompt can starve them.
        """
        order = sorted(self._running.values(), key=self._rank)
        wants = [(seq, self._wanted(seq)) for seq in order]
        for seq, num in [w for w in wants if w[1] == 1] + [w for w in wants if w[1] > 1]:
            if not draft.budget or not draft.places:
                return
            if seq.slot < 0:
                continue
            num = min(num, draft.budget)
            grown = self._reserve(seq, seq.computed + num, draft)
            if grown is not None:
                draft.places -= 1
                self._row(draft, seq, num, grown)

    def _reserve(
        self, seq: Sequence, upto: int, draft: _Draft
    ) -> tuple[tuple[int, ...], ...] | None:
        """Blocks for a running sequence, at the cost of those that rank behind it."""
        while (grown := self.kv.reserve(seq, upto)) is None:
            if self._held:
                return None
            planned = set(map(id, draft.seqs))
            idle = [s for s in self._running.values() if id(s) not in planned]
            victim = max(idle, key=self._rank)
            self._preempt(victim)
            if victim is seq:
                return None
        return grown

    def _admit(self, draft: _Draft) -> None:
        """Rows for waiting sequences, best rank first, while budget, slots and blocks last."""
        while draft.budget and self._slots and (seq := self._waiting.peek()):
            if self._stuck == (seq, self.kv.version):
                return
            copies = self._prepare(seq)
            num = min(seq.behind, draft.budget)
            spare = self._spare if self._running else 0
            whole = self._chunked or num == seq.behind
            fits = whole and self.kv.reserve(seq, seq.computed + num, spare) is not None
            if not fits:
                self.kv.release(self.kv.detach(seq))
                seq.computed = 0
                self._stuck = (seq, self.kv.version) if whole else None
                return
            self._waiting.remove(seq)
            self._enter(draft, seq, copies)
            self._row(draft, seq, num, ())

    def _prepare(self, seq: Sequence) -> list[Copy]:
        """Give a waiting sequence what is there already: a sibling's prompt, or a cached prefix."""
        leader, copies = seq.leader, None
        if leader is not None and leader.blocks and leader.written >= seq.num_prompt:
            copies = self.kv.fork(leader, seq)
        if copies is not None:
            seq.computed = seq.num_prompt - 1
        else:
            seq.computed = self.kv.match(seq)
        return copies or []

    def _enter(self, draft: _Draft, seq: Sequence, copies: list[Copy]) -> None:
        """Move a sequence from waiting to a slot."""
        seq.to(State.RUNNING)
        seq.slot = self._slots.pop()
        seq.written = seq.computed
        seq.sent = len(seq.tokens)
        self._running[seq.slot] = seq
        if seq.num_cached is None:
            self._count_cached(seq)
        draft.copies += copies
        draft.started.append(
            Start(
                slot=seq.slot,
                tokens=tuple(seq.tokens),
                num_prompt=seq.num_prompt,
                blocks=tuple(map(tuple, seq.blocks)),
                params=seq.request.params,
                sibling=seq.sibling,
                adapter=seq.request.adapter,
            )
        )

    def _count_cached(self, seq: Sequence) -> None:
        """What the prefix cache spared a request.

        What siblings share of it is not counted again.
        """
        seq.num_cached = 0
        if seq.leader is None:
            seq.num_cached = min(seq.computed, seq.num_prompt)
            self.counters.prefix_queries += seq.num_prompt
            self.counters.prefix_hits += seq.num_cached

    def _row(
        self, draft: _Draft, seq: Sequence, num: int, grown: tuple[tuple[int, ...], ...]
    ) -> None:
        length = len(seq.tokens) + seq.expected
        sample = seq.computed + num == length and length < seq.limit
        fresh = () if self._resident else tuple(seq.tokens[seq.sent :])
        draft.rows.append(Row(seq.slot, seq.computed, num, grown, sample, fresh))
        draft.seqs.append(seq)
        draft.budget -= num
        seq.sent = len(seq.tokens)
        seq.computed += num
        seq.expected += sample
        seq.in_flight += 1
        seq.last_step = self._step

    # Commits.

    def _advance(
        self,
        seq: Sequence,
        row: Row,
        tokens: tuple[int, ...],
        logprobs: tuple[TokenLogprobs, ...],
        result: Result,
    ) -> Update | None:
        """Enter what one row brought into the sequence's book."""
        if seq.state is State.FINISHED:
            return None
        if row.slot in result.failed:
            self._finish(seq, FinishReason.ERROR)
            return self._update(seq, (), (), FinishReason.ERROR, error=result.failed[row.slot])
        self._score_prompt(seq, row, result.prompt_logprobs.get(row.slot, ()))
        accepted, finish, stop = self._accept(seq, tokens)
        if seq.slot == row.slot:
            self._written(seq, row)
        if finish is None and seq.num_prompt >= seq.limit and seq.written >= seq.num_prompt:
            finish = FinishReason.LENGTH
        if finish is not None:
            self._finish(seq, finish)
        if not accepted and finish is None:
            return None
        return self._update(seq, tokens[:accepted], logprobs[:accepted], finish, stop)

    def _written(self, seq: Sequence, row: Row) -> None:
        """A row's keys and values are in the cache: let others find them, and siblings begin."""
        before, seq.written = seq.written, row.start + row.num_tokens
        self.counters.prompt_tokens += max(
            0, min(seq.written, seq.num_prompt) - min(before, seq.num_prompt)
        )
        self.kv.publish(seq)
        if before < seq.num_prompt <= seq.written:
            for other in self._followers(seq):
                self._unblock(other, "sibling")

    def _accept(
        self, seq: Sequence, tokens: tuple[int, ...]
    ) -> tuple[int, FinishReason | None, int | None]:
        """Append sampled tokens up to the first that ends the sequence.

        Their number, why it ends, the stop token.
        """
        params = seq.request.params
        for num, token in enumerate(tokens, start=1):
            seq.tokens.append(token)
            self.counters.generation_tokens += 1
            if token in self._eos and not params.ignore_eos:
                return num, FinishReason.STOP, None
            if token in (params.stop_token_ids or ()):
                return num, FinishReason.STOP, token
            if len(seq.tokens) >= seq.limit:
                return num, FinishReason.LENGTH, None
        return len(tokens), None, None

    def _score_prompt(self, seq: Sequence, row: Row, scores: tuple[TokenLogprobs, ...]) -> None:
        """Keep prompt log probabilities by position, so that a preemption repeats none."""
        if scores and seq.prompt_logprobs is not None:
            first = row.start + 1
            seq.prompt_logprobs[first : first + len(scores)] = scores

    def _update(
        self,
        seq: Sequence,
        tokens: tuple[int, ...],
        logprobs: tuple[TokenLogprobs, ...],
        finish: FinishReason | None,
        stop: int | None = None,
        error: str | None = None,
    ) -> Update:
        first, seq.told = not seq.told, True
        scores = seq.prompt_logprobs if first else None
        return Update(
            id=seq.request.id,
            sibling=seq.sibling,
            tokens=tokens,
            logprobs=logprobs or None,
            prompt_logprobs=tuple(scores) if scores is not None else None,
            num_cached=(seq.num_cached or 0) if first else None,
            finish=finish,
            stop_reason=stop,
            error=error,
            epoch=seq.request.epoch,
        )

    # Leaving.

    def _finish(self, seq: Sequence, reason: FinishReason) -> None:
        """End a sequence from wherever it is, and give back all that it holds."""
        if seq.state is State.RUNNING:
            self._leave(seq)
        elif seq.blockers:
            self._blocked -= 1
            seq.blockers.clear()
        else:
            self._waiting.remove(seq)
        seq.to(State.FINISHED)
        seq.finish = reason
        self.counters.finished[reason] += 1
        family = self._live[seq.request.id]
        family.remove(seq)
        if not family:
            del self._live[seq.request.id]
        self._succeed(seq)

    def _succeed(self, leader: Sequence) -> None:
        """Where a leader ends before its prompt is computed, the next sibling takes its place."""
        heirs = list(self._followers(leader))
        if heirs:
            for other in heirs[1:]:
                other.leader = heirs[0]
            heirs[0].leader = None
            heirs[0].prompt_logprobs = leader.prompt_logprobs
            self._unblock(heirs[0], "sibling")

    def _followers(self, leader: Sequence) -> Iterator[Sequence]:
        """The siblings that wait for this sequence's prompt."""
        for seq in list(self._live.get(leader.request.id, ())):
            if seq.leader is leader and "sibling" in seq.blockers:
                yield seq

    def _preempt(self, seq: Sequence) -> None:
        """Take a running sequence's slot and blocks; it waits, and will be computed anew."""
        self.counters.preemptions += 1
        self._leave(seq)
        seq.to(State.WAITING)
        seq.computed = seq.written = 0
        if seq.in_flight:
            self._block(seq, "flight")
        else:
            self._waiting.push(seq)

    def _leave(self, seq: Sequence) -> None:
        """Part a sequence from slot and blocks; plans under way may still touch them."""
        del self._running[seq.slot]
        self._stopped.append(seq.slot)
        blocks = self.kv.detach(seq)
        if seq.in_flight:
            self._held.append((seq.last_step, seq.slot, blocks))
        else:
            self._slots.append(seq.slot)
            self.kv.release(blocks)
        seq.slot = -1

    def _give_back(self, step: int) -> None:
        """Free what only plans up to `step` touched."""
        for last, slot, blocks in self._held:
            if last <= step:
                self._slots.append(slot)
                self.kv.release(blocks)
        self._held = [held for held in self._held if held[0] > step]

    def _block(self, seq: Sequence, word: str) -> None:
        """Let a sequence that is not in the queue wait for `word`."""
        self._blocked += not seq.blockers
        seq.blockers.add(word)

    def _unblock(self, seq: Sequence, word: str) -> None:
        """Take a word back; without any left, the sequence queues."""
        seq.blockers.discard(word)
        if not seq.blockers:
            self._blocked -= 1
            self._waiting.push(seq)
