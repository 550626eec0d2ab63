"""Who is here: every unfinished sequence, and the slot and blocks it holds."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from operator import attrgetter

from ..config import EngineConfig
from ..executor import Capacity
from ..request import STEP_TOKENS, FinishReason, Request
from ..sequence import Family, Lockstep, Sequence, State
from .kv import BlockLists, KVManager
from .policy import Waiting, rank


@dataclass(slots=True)
class Counters:
    """What has happened since the start, in tokens and times."""

    steps: int = 0
    prompt_tokens: int = 0  # computed, so neither cached ones nor any twice but after preemption
    generation_tokens: int = 0
    computed_tokens: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    preemptions: int = 0
    finished: dict[FinishReason, int] = field(
        default_factory=lambda: dict.fromkeys(FinishReason, 0)
    )
    step_tokens: dict[int, int] = field(default_factory=lambda: dict.fromkeys((*STEP_TOKENS, 0), 0))
    """Steps by the tokens that they compute: up to each of STEP_TOKENS, and 0 for any more."""

    def count_step(self, num_tokens: int) -> None:
        """Enter a plan that computes so many tokens."""
        self.steps += 1
        self.computed_tokens += num_tokens
        at = bisect_left(STEP_TOKENS, num_tokens)
        self.step_tokens[STEP_TOKENS[at] if at < len(STEP_TOKENS) else 0] += 1


BY_RANK = attrgetter("rank")

LockstepOf = Callable[[Request, int], Lockstep | None]
"""What holds the siblings of a request in lockstep, given the most tokens that may follow its
prompt; None where each goes its own way."""


def alone(request: Request, most: int) -> Lockstep | None:
    """No request's siblings go in lockstep."""
    return None


class Roster:
    """Moves sequences between waiting, running and finished, and keeps the books on what they hold.

    live      request id to its unfinished sequences
    waiting   those that want a slot; a sequence with a word in `blockers` is not among them
    running   slot to sequence
    slots     free slots
    stopped   slots left since the last plan, which the workers have yet to hear of
    held      slots and blocks of those that left while plans under way still touched them, by
              the last such plan
    estates   finished leaders whose prompt's blocks are kept for siblings that have yet to fork
    now       the time in seconds, as the owner last told it
    """

    def __init__(
        self, config: EngineConfig, capacity: Capacity, lockstep_of: LockstepOf = alone
    ) -> None:
        self.kv = KVManager(capacity, caching=config.enable_prefix_caching)
        self.counters = Counters()
        self.live: dict[str, list[Sequence]] = {}
        self.waiting = Waiting()
        self.running: dict[int, Sequence] = {}
        self.slots = list(range(config.max_num_seqs - 1, -1, -1))
        self.stopped: list[int] = []
        self.held: list[tuple[int, int, BlockLists]] = []
        self.estates: list[Sequence] = []
        self.now = 0.0
        self._lockstep_of = lockstep_of
        self._policy = config.scheduling_policy
        self._max_len = capacity.max_model_len
        self._eos = capacity.eos_token_ids
        self._blocked = self._arrivals = 0
        self._owed = 0

    @property
    def num_waiting(self) -> int:
        """Sequences that hold none."""
        return len(self.waiting) + self._blocked

    @property
    def num_deferred(self) -> int:
        """Those that wait for something else than a place."""
        return self._blocked

    @property
    def num_behind(self) -> int:
        """Tokens yet to be computed until each sequence has its next one. Any thread may ask: an
        estimate while a step is under way.

        It costs nothing for those that wait, however many.
        """
        return self._owed + sum(seq.due for seq in [*self.running.values()])

    def add(self, request: Request) -> None:
        """Take on a request: `params.n` sequences, of which all but the first wait for its prompt
        to be computed.

        Siblings that were parted come back one by one under the same id. The caller has checked
        that prompt and output fit, and that the seed is set.
        """
        params = request.params
        total = len(request.prompt) + len(request.emitted)
        assert request.prompt and total < self._max_len, "the door checks lengths"
        assert not request.emitted or params.n == 1, "siblings are resumed one by one"
        limit = self._max_len
        if params.max_tokens is not None:
            limit = min(limit, len(request.prompt) + params.max_tokens)
        assert not request.emitted or total < limit, "nothing is left to generate"
        known = self.live.get(request.id, [])
        lockstep = self._lockstep_of(request, limit - len(request.prompt))
        num = params.n if lockstep is None else lockstep.num_members
        siblings = range(request.sibling, request.sibling + num)
        ends = params.ends(self._eos)
        assert not any(s.sibling in siblings for s in known), f"{request.id} is known already"
        family = [
            Sequence(
                request=request,
                sibling=sibling,
                rank=rank(self._policy, request, self._arrivals, sibling),
                arrived=self.now,
                tokens=[*request.prompt, *request.emitted],
                num_prompt=len(request.prompt),
                limit=limit,
                ends=ends,
                shared=len(request.prompt) - 1,
                keys=[*request.keys],
            )
            for sibling in siblings
        ]
        if params.prompt_logprobs is not None:
            family[0].prompt_logprobs = [None] * len(request.prompt)
        self._arrivals += 1
        self.live[request.id] = [*known, *family]
        self.waiting.push(family[0])
        for seq in family[1:]:
            seq.leader = family[0]
            self._block(seq, "sibling" if lockstep is None else "step")
        if lockstep is not None:
            wanted = set(range(request.sibling, request.sibling + params.n))
            bond = Family(lockstep=lockstep, members=family, living=family[:1], wanted=wanted)
            for seq in family:
                seq.family = bond
        for seq in family:
            self._owe(seq)

    def enter(self, seq: Sequence) -> None:
        """Move a waiting sequence, which has its blocks, to a slot."""
        self.waiting.remove(seq)
        seq.to(State.RUNNING)
        self._owe(seq)
        seq.slot = self.slots.pop()
        seq.written = seq.computed
        if seq.written >= seq.num_prompt:
            self.prompt_done(seq)
        seq.sent = len(seq.tokens)
        self.running[seq.slot] = seq
        if seq.entered is None:
            seq.entered = self.now
        if seq.num_cached is None:
            self._count_cached(seq)
        leader, seq.leader = seq.leader, None
        if leader in self.estates:
            self._settle(leader)

    def prompt_done(self, leader: Sequence) -> None:
        """A prompt is in the cache: its siblings may begin."""
        for seq in self._followers(leader):
            self._unblock(seq, "sibling")

    def landed(self, seq: Sequence) -> None:
        """A plan with this sequence, which waits for something, was committed.

        One that was preempted may queue after the last.
        """
        if "flight" in seq.blockers and not seq.in_flight:
            self._unblock(seq, "flight")

    def finish(self, seq: Sequence, reason: FinishReason) -> None:
        """End a sequence from wherever it is, and give back all that it holds."""
        self.counters.finished[reason] += 1
        self.dismiss(seq)
        seq.finish = reason

    def dismiss(self, seq: Sequence) -> None:
        """End a sequence that is no answer by itself."""
        if seq.state is State.RUNNING:
            kept = self._bequest(seq)
            self._leave(seq)
            if kept:
                seq.blocks = kept
                self.estates.append(seq)
        elif seq.blockers:
            self._blocked -= 1
            seq.blockers.clear()
        else:
            self.waiting.remove(seq)
        seq.to(State.FINISHED)
        self._owe(seq)
        family = self.live[seq.request.id]
        family.remove(seq)
        if not family:
            del self.live[seq.request.id]
        self._succeed(seq)
        if seq.leader in self.estates:
            self._settle(seq.leader)

    def preempt(self, seq: Sequence) -> None:
        """Take a running sequence's slot and blocks; it waits, and will be computed anew."""
        self.counters.preemptions += 1
        self._leave(seq)
        seq.to(State.WAITING)
        seq.computed = seq.written = 0
        if seq.in_flight:
            self._block(seq, "flight")
        elif seq.candidates is not None:
            self._block(seq, "step")
        else:
            self.waiting.push(seq)
        self._owe(seq)

    def rest(self, seq: Sequence) -> None:
        """Let a sequence without a plan under way wait for its family's next step, with nothing."""
        assert not seq.in_flight
        if seq.state is State.RUNNING:
            self._leave(seq)
            seq.to(State.WAITING)
            seq.computed = seq.written = 0
        elif not seq.blockers:
            self.waiting.remove(seq)
        self._block(seq, "step")
        self._owe(seq)

    def take_over(self, seq: Sequence, parent: Sequence, token: int) -> None:
        """Make a sequence go on as `parent` does, with a last token of its own."""
        self.rest(seq)
        seq.leader, seq.shared = parent, len(parent.tokens)
        seq.tokens = [*parent.tokens, token]
        seq.keys = [*parent.keys]
        self._unblock(seq, "step")
        self._owe(seq)

    def go_on(self, seq: Sequence, token: int) -> None:
        """Give a sequence its next token."""
        seq.tokens.append(token)
        seq.leader = None
        if "step" in seq.blockers:
            self._unblock(seq, "step")
        self._owe(seq)

    def make_room(self) -> bool:
        """Take something from those that cannot use it now; whether there was anything.

        Called where nothing else can go on: each that runs waits for a sibling.
        """
        if self.drop_estates():
            return True
        if not self.running:
            return False
        self.preempt(max(self.running.values(), key=BY_RANK))
        return True

    def drop_estates(self) -> bool:
        """Give back what finished leaders left; whether there was anything."""
        dropped, self.estates = self.estates, []
        for seq in dropped:
            self.kv.release(self.kv.detach(seq))
        return bool(dropped)

    def give_back(self, step: int) -> None:
        """Free what only plans up to `step` touched."""
        for last, slot, blocks in self.held:
            if last <= step:
                self.slots.append(slot)
                self.kv.release(blocks)
        self.held = [held for held in self.held if held[0] > step]

    def verify(self, *, idle: bool) -> None:
        """Assert that the books balance.

        Every block and slot is free or accounted for; all are free where the engine is idle.
        """
        everyone = [*self.estates, *(s for family in self.live.values() for s in family)]
        holders = [seq.blocks for seq in everyone if seq.blocks]
        self.kv.verify([*holders, *(blocks for _, _, blocks in self.held)])
        slots = [*self.slots, *self.running, *(slot for _, slot, _ in self.held)]
        assert len(slots) == len(set(slots)), "a slot is accounted for twice"
        assert all(seq.slot == slot for slot, seq in self.running.items())
        states = [seq.state for family in self.live.values() for seq in family]
        assert State.FINISHED not in states
        assert states.count(State.RUNNING) == len(self.running)
        assert states.count(State.WAITING) == self.num_waiting
        due = (seq.due for family in self.live.values() for seq in family)
        assert self.num_behind == sum(due), "the tokens of those that wait are miscounted"
        if idle:
            assert not self.held and not self.estates
            assert not self.running and not self.num_waiting
            assert all(g.num_free == g.num_blocks - 1 for g in self.kv.groups)

    def _count_cached(self, seq: Sequence) -> None:
        """What the prefix cache spared a request.

        What siblings share of it is not counted again.
        """
        seq.num_cached = 0
        if seq.leader is None:
            seq.num_cached = min(seq.computed, seq.num_prompt)
            self.counters.prefix_queries += seq.num_prompt
            self.counters.prefix_hits += seq.num_cached

    def _leave(self, seq: Sequence) -> None:
        """Part a sequence from slot and blocks; plans under way may still touch them."""
        del self.running[seq.slot]
        self.stopped.append(seq.slot)
        blocks = self.kv.detach(seq)
        if seq.in_flight:
            self.held.append((seq.last_step, seq.slot, blocks))
        else:
            self.slots.append(seq.slot)
            self.kv.release(blocks)
        seq.slot = -1

    def _bequest(self, leader: Sequence) -> BlockLists:
        """What to keep of one that is about to leave while siblings still wait to fork."""
        if leader.written < leader.num_prompt or not any(self._forking(leader)):
            return []
        return self.kv.keep(leader.blocks, leader.num_prompt)

    def _settle(self, leader: Sequence) -> None:
        """Give back an estate that nobody waits for any more."""
        if not any(self._forking(leader)):
            self.estates.remove(leader)
            self.kv.release(self.kv.detach(leader))

    def _forking(self, leader: Sequence) -> Iterator[Sequence]:
        """The siblings that take over this sequence's prompt when they get a place."""
        for seq in self.live.get(leader.request.id, ()):
            if seq.leader is leader and seq.state is State.WAITING:
                yield seq

    def _succeed(self, leader: Sequence) -> None:
        """Where a leader ends before its prompt is computed, the next sibling takes its place."""
        heirs = list(self._followers(leader))
        if heirs:
            for other in heirs[1:]:
                other.leader = heirs[0]
            heirs[0].leader = None
            heirs[0].prompt_logprobs = leader.prompt_logprobs
            self._owe(heirs[0])
            self._unblock(heirs[0], "sibling")

    def _followers(self, leader: Sequence) -> Iterator[Sequence]:
        """The siblings that wait for this sequence's prompt."""
        for seq in list(self.live.get(leader.request.id, ())):
            if seq.leader is leader and "sibling" in seq.blockers:
                yield seq

    def _owe(self, seq: Sequence) -> None:
        """Count a sequence's tokens anew: it came or went, or what it has yet to compute changed
        while it had no slot.
        """
        owed = seq.due if seq.state is State.WAITING else 0
        self._owed += owed - seq.owed
        seq.owed = owed

    def _block(self, seq: Sequence, word: str) -> None:
        """Let a sequence that is not in the queue wait for `word`."""
        self._blocked += not seq.blockers
        seq.blockers.add(word)

    def _unblock(self, seq: Sequence, word: str) -> None:
        """Take a word back; without any left, the sequence queues."""
        seq.blockers.discard(word)
        if not seq.blockers:
            self._blocked -= 1
            self.waiting.push(seq)
