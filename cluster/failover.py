"""Where each stream of a gateway runs, and where it goes on when its replica dies, hangs or leaves.

    begin ──> running on a replica ── last update ──> ended
                 │         ^
       lost, left, refused  │ paced, oldest first, same weights
                 v         │
               waiting ────┘── too long without a replica ──> EngineLost

A choice starts anew with all that it has emitted, under an epoch of its own: what an earlier start
still says is not heard. A choice under which engines die, or get stuck, twice without a token in
between is suspect: it then runs alone on a replica until its next token, and is refused if that one
dies or gets stuck too.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial

from ..engine.errors import EngineLost, Overloaded, ShoalError
from ..engine.request import FinishReason, Request, Update
from .candidates import Candidates
from .deaths import count_death, deaths_here
from .link import Link, LinkLost, Router
from .lives import Life, Lives
from .metrics import Metrics
from .served import Served
from .state import Choice
from .stream import Generation
from .waiting import Waiting, WaitingLine

TICK_S = 0.1

log = logging.getLogger(__name__)


class Failover:
    """The streams of one gateway; used on its event loop alone.

    `timeout_s`: how long a stream waits while no replica of its weights is there. `grace_s`: how
    long a stream stays on a replica that is leaving, if it could go elsewhere.
    """

    def __init__(
        self,
        router: Router,
        metrics: Metrics,
        *,
        timeout_s: float,
        grace_s: float,
        max_failovers: int,
    ) -> None:
        self._metrics = metrics
        self._timeout_s = timeout_s
        self._grace_s = grace_s
        self._max_failovers = max_failovers
        self._lives = Lives(self._wake)
        self._candidates = Candidates(router, self._lives)
        self._line = WaitingLine()
        self._leaving: dict[Link, float] = {}
        self._last_lost: Link | None = None
        self._stopping = False
        self._served = Served()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def num_streams(self) -> int:
        """Sequences that have not ended, those without a replica too."""
        return len(self._lives) + len(self._line)

    def begin(self, generation: Generation) -> None:
        """Send a request. What comes of it, a refusal too, comes to the generation's callbacks.

        Raises UnknownModel, EngineLost where there is no replica for it.
        """
        state = generation.state
        try:
            link = self._candidates.to_begin(generation)
        except EngineLost:
            now = time.monotonic()
            if self._lives.serves_apart(state.model):
                self._wait(generation, generation.choices, now, "replicas are set apart")
            elif self._are_replaced(generation):
                reason = "the replicas there are leaving"
                self._wait(generation, generation.choices, now, reason, due=now + TICK_S)
            else:
                raise
            return
        self._start(generation, generation.choices, link, state.request, time.monotonic())

    def _are_replaced(self, generation: Generation) -> bool:
        """Whether replicas are there but leave, so that others come in their stead."""
        ends = self._stopping or self._served.lacks(generation.state.model)
        return not ends and any(link.leaving for link in self._candidates.within_reach(generation))

    def drop(self, generation: Generation) -> None:
        """Free what a generation holds; nothing is heard of it any more."""
        generation.ended = True
        links = {self._lives.leave(c): None for c in generation.choices if c in self._lives}
        for link in links:
            link.abort(generation.request.id)

    def stop(self) -> None:
        """The server ends: streams stay where they are, and wait for no replacement."""
        self._stopping = True
        self._wake()

    def serve_only(self, versions: Mapping[str, str | None]) -> None:
        """See `Served.only`: streams of models that get no more replicas, or of weights that those
        to come do not have, end with the replicas that there are.
        """
        self._served.only(versions)
        self._wake()

    # What comes from replicas.

    def _receive(self, life: Life, update: Update | ShoalError) -> None:
        if isinstance(update, ShoalError):
            self._lose(life, update)
            return
        generation = life.generation
        choice = generation.choices[update.sibling - generation.request.sibling]
        if self._lives.of(choice) is not life or update.epoch != choice.epoch:
            return
        self._lives.settle(life)
        generation.take(choice, update)
        if choice.finish is not None and choice in self._lives:
            self._lives.leave(choice)
            if update.finish is None:
                life.link.abort(generation.request.id, choice.sibling, FinishReason.STOP)
        if generation.ended:
            self.drop(generation)

    def _lose(self, life: Life, error: ShoalError) -> None:
        """A replica is lost with these choices, or has refused them."""
        generation, choices, alone = life.generation, tuple(life.open), life.alone
        for choice in choices:
            self._lives.leave(choice)
        if generation.ended or not choices:
            return
        resumed = choices[0].epoch > generation.request.epoch
        refused = isinstance(error, Overloaded | EngineLost) and not isinstance(error, LinkLost)
        if refused and not resumed and self._ask_another(life, choices):
            return
        if not isinstance(error, EngineLost) and not (resumed and isinstance(error, Overloaded)):
            self._fail(generation, error)
            return
        now = time.monotonic()
        if not isinstance(error, LinkLost):
            others = [
                link for link in self._candidates.within_reach(generation) if link is not life.link
            ]
            if not resumed and not others:
                self._fail(generation, error)  # as where no replica is there to begin with
                return
            self._wait(generation, choices, life.since, error.message, due=now + TICK_S)
            return
        cause = self._count_loss(life, error)
        self._metrics.moved(generation.state.model, cause, len(choices))
        fatal: ShoalError | None = None
        if error.died or error.stuck:
            fatal = count_death(choices, alone=alone, max_failovers=self._max_failovers)
        if fatal is not None:
            self._fail(generation, fatal)
        else:
            self._wait(generation, choices, now, error.message)

    def _ask_another(self, life: Life, choices: Sequence[Choice]) -> bool:
        """Send a request that was refused to a replica that may have room for it, if there is one
        that has not refused it.
        """
        generation = life.generation
        generation.state.digest = ""
        refused_by = life.refused_by | {life.link}
        link = self._candidates.to_ask(generation, refused_by)
        if link is None:
            return False
        request = generation.state.request
        self._start(generation, choices, link, request, life.since).refused_by = refused_by
        return True

    def _count_loss(self, life: Life, error: LinkLost) -> str:
        """Count a lost replica once, for all its streams; why they move."""
        lives = "left" if life.link.leaving else "silent"
        cause = "died" if error.died else "stuck" if error.stuck else lives
        if life.link is not self._last_lost:
            self._last_lost = life.link
            self._metrics.lost(life.generation.state.model, cause)
        return cause

    # Starts and ends.

    def _start(
        self,
        generation: Generation,
        choices: Sequence[Choice],
        link: Link,
        request: Request,
        since: float,
        anew: int = 0,
    ) -> Life:
        generation.state.digest = generation.state.digest or link.card.digest
        generation.meter = self._metrics.meter(link)
        life = Life(generation=generation, open=[*choices], link=link, since=since, anew=anew)
        self._lives.begin(life)
        generation.predicted = link.cached(request)
        link.submit(request, partial(self._receive, life))
        self._tick_later()
        return life

    def _resume(
        self, generation: Generation, choices: Sequence[Choice], link: Link, since: float
    ) -> Life:
        for choice in choices:
            choice.epoch += 1
        request = generation.state.remainder(choices[0])
        anew = generation.state.num_anew(choices[0])
        return self._start(generation, choices, link, request, since, anew)

    def _fail(self, generation: Generation, error: ShoalError) -> None:
        generation.fail(error)
        self.drop(generation)

    # Waiting.

    def _wait(
        self,
        generation: Generation,
        choices: Sequence[Choice],
        since: float,
        reason: str,
        due: float = 0.0,
    ) -> None:
        if not any(choice.emitted or choice in self._lives for choice in generation.choices):
            generation.state.digest = ""  # it can as well begin on other weights
        for group in generation.state.groups(choices):
            self._line.join(
                Waiting(generation=generation, choices=group, since=since, reason=reason, due=due)
            )
        if due:
            self._tick_later()
        else:
            self._wake()

    def _wake(self) -> None:
        """Look after those that wait in the next turn of the loop."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(0, self._tick)

    def _tick_later(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(TICK_S, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._look_for_leaving()
        self._line.serve(self._try, self._give_up)
        if self._line or self._lives:
            self._tick_later()

    def _give_up(self, waiting: Waiting) -> bool:
        """End what has waited too long while there was no replica for it."""
        now, generation = time.monotonic(), waiting.generation
        if self._candidates.within_reach(generation) and not waiting.due:
            waiting.since = now
            return False
        if why := self._served.end_of(generation.state, self._candidates.of_model(generation)):
            end = why
        elif self._stopping:
            end = "the server is shutting down"
        elif now - waiting.since < self._timeout_s:
            return False
        else:
            end = "no other replica took it over"
            end += f" within {now - waiting.since:.0f} s" if self._timeout_s else ""
        self._fail(generation, EngineLost(f"{waiting.reason}; {end}"))
        return True

    def _try(self, waiting: Waiting) -> bool:
        """Start what waits, if there is a place for it."""
        generation, since = waiting.generation, waiting.since
        if waiting.due > time.monotonic():
            return False
        if not waiting.suspect:
            link = self._candidates.to_resume(generation, waiting.choices)
            if link is not None:
                self._resume(generation, waiting.choices, link, since)
            return link is not None
        link = self._candidates.to_run_alone(generation)
        if link is None:
            return False
        log.warning(
            "%s was being computed when %d engines died or got stuck; it runs alone on replica %s",
            generation.request.id,
            deaths_here(waiting.choices),
            link.replica,
        )
        self._clear(link)
        life = self._resume(generation, waiting.choices, link, since)
        self._lives.set_apart(life)
        return True

    # Moves.

    def _clear(self, link: Link) -> None:
        """Move everything off a replica."""
        now = time.monotonic()
        for life in self._lives.on(link):
            generation, choices = life.generation, tuple(life.open)
            self._interrupt(life, choices)
            self._metrics.moved(generation.state.model, "suspect", len(choices))
            self._wait(generation, choices, now, f"replica {link.replica} is set apart")

    def _interrupt(self, life: Life, choices: Iterable[Choice]) -> None:
        """Stop choices where they run; they can go on elsewhere at once."""
        for choice in choices:
            self._lives.leave(choice)
            life.link.abort(life.generation.request.id, choice.sibling)

    def _look_for_leaving(self) -> None:
        """Move streams off replicas that are leaving, as fast as others can take them."""
        now = time.monotonic()
        self._leaving = {
            link: self._leaving.get(link, now) for link in self._lives.links() if link.leaving
        }
        for link, since in self._leaving.items():
            if now - since >= self._grace_s and not self._stopping:
                self._move_off(link)

    def _move_off(self, link: Link) -> None:
        num_moved = 0
        for life in sorted(self._lives.on(link), key=lambda life: life.generation.began):
            if life.alone:
                continue
            generation = life.generation
            for group in generation.state.groups(life.open):
                target = self._candidates.to_resume(generation, group, stay=False)
                if target is None:
                    break
                self._interrupt(life, group)
                self._resume(generation, group, target, time.monotonic())
                num_moved += len(group)
        if num_moved:
            self._metrics.moved(link.card.names[0], "left", num_moved)
            log.info("replica %s is leaving: %d streams moved", link.replica, num_moved)
