"""Where each stream of a gateway runs, and where it goes on when its replica dies, hangs or leaves.

    begin ──> running on a replica ── last update ──> ended
                 │         ^
       lost, left, refused  │ paced, oldest first, same weights
                 v         │
               waiting ────┘── too long without a replica ──> EngineLost

A choice starts anew with all that it has emitted, under an epoch of its own: what an earlier start
still says is not heard. A choice under which engines die twice without a token in between is
suspect: it then runs alone on a replica until its next token, and is refused if that one dies too.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from ..engine.errors import EngineLost, FatalRequest, Overloaded, ShoalError
from ..engine.request import FinishReason, Request, Update
from .link import Link, LinkLost, Router
from .lives import Life, Lives
from .metrics import Metrics
from .served import Served
from .state import Choice
from .stream import Generation

SUSPECT_DEATHS = 2
TICK_S = 0.1

log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True, eq=False)
class _Waiting:
    """Choices, one or all beams of a generation, that have no replica since `since`.

    `reason` says why. Those that a replica has refused are not sent anew before `due`.
    """

    generation: Generation
    choices: Sequence[Choice]
    since: float
    reason: str
    due: float = 0.0

    @property
    def num_tokens(self) -> int:
        """What has to be computed anew."""
        return len(self.generation.request.prompt) + len(self.choices[0].emitted)

    @property
    def suspect(self) -> bool:
        """Whether it may be what kills engines."""
        return any(choice.deaths_here >= SUSPECT_DEATHS for choice in self.choices)


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
        self._router = router
        self._metrics = metrics
        self._timeout_s = timeout_s
        self._grace_s = grace_s
        self._max_failovers = max_failovers
        self._lives = Lives(self._wake)
        self._queue: list[_Waiting] = []
        self._leaving: dict[Link, float] = {}
        self._last_lost: Link | None = None
        self._stopping = False
        self._served = Served()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def num_streams(self) -> int:
        """Sequences that have not ended, those without a replica too."""
        return len(self._lives) + sum(len(waiting.choices) for waiting in self._queue)

    def begin(self, generation: Generation) -> None:
        """Send a request. What comes of it, a refusal too, comes to the generation's callbacks.

        Raises UnknownModel, EngineLost where there is no replica for it.
        """
        state = generation.state
        try:
            link = self._router.choose(state.model, state.request, self._lives.is_free)
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
        return not ends and any(link.leaving for link in self._there(generation))

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

    def serve_only(self, versions: Mapping[str, str]) -> None:
        """From now on these models alone are served, by replicas of these versions: streams of
        others, or of weights that those do not have, end with the replicas that there are.
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
            others = [link for link in self._there(generation) if link is not life.link]
            if not resumed and not others:
                self._fail(generation, error)  # as where no replica is there to begin with
                return
            self._wait(generation, choices, life.since, error.message, due=now + TICK_S)
            return
        cause = self._count_loss(life, error)
        self._metrics.moved(generation.state.model, cause, len(choices))
        if error.died and (fatal := self._count_deaths(choices, alone)):
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

        def fit(link: Link) -> bool:
            return link not in refused_by and link.has_room and self._lives.is_free(link)

        request = generation.state.request
        try:
            link = self._router.choose(generation.state.model, request, fit)
        except EngineLost:
            return False
        self._start(generation, choices, link, request, life.since).refused_by = refused_by
        return True

    def _count_loss(self, life: Life, error: LinkLost) -> str:
        """Count a lost replica once, for all its streams; why they move."""
        cause = "died" if error.died else "left" if life.link.leaving else "silent"
        if life.link is not self._last_lost:
            self._last_lost = life.link
            self._metrics.lost(life.generation.state.model, cause)
        return cause

    def _count_deaths(self, choices: Sequence[Choice], alone: bool) -> ShoalError | None:
        """Enter an engine's death; the error that ends the request, if this was one too many."""
        for choice in choices:
            choice.deaths += 1
            choice.deaths_here += 1
        here, all_ = (max(c.deaths_here for c in choices), max(c.deaths for c in choices))
        if alone:
            return FatalRequest(
                f"{here} engines died while they computed this request, the last one while it "
                "computed nothing else; it is not tried again"
            )
        if all_ > self._max_failovers:
            return EngineLost(
                f"{all_} engines died under this request; more than --max-failovers="
                f"{self._max_failovers} are not tried"
            )
        return None

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
        anew = len(request.prompt) + len(request.emitted)
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
        beams = generation.request.params.use_beam_search
        for group in [choices] if beams else [(choice,) for choice in choices]:
            self._queue.append(
                _Waiting(generation=generation, choices=group, since=since, reason=reason, due=due)
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
        queue, self._queue = self._queue, []
        queue.sort(key=lambda waiting: (not waiting.suspect, waiting.generation.began))
        full: set[tuple[str, str]] = set()
        for waiting in queue:
            state = waiting.generation.state
            kind = (state.model, state.digest)
            if waiting.generation.ended:
                continue
            if kind in full:
                self._queue.append(waiting)
            elif not self._try(waiting) and not self._give_up(waiting):
                self._queue.append(waiting)
                if not waiting.suspect and not waiting.due:
                    full.add(kind)
        if self._queue or self._lives:
            self._tick_later()

    def _give_up(self, waiting: _Waiting) -> bool:
        """End what has waited too long while there was no replica for it."""
        now, generation = time.monotonic(), waiting.generation
        if self._there(generation) and not waiting.due:
            waiting.since = now
            return False
        if why := self._served.end_of(generation.state, self._router.links()):
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

    def _try(self, waiting: _Waiting) -> bool:
        """Start what waits, if there is a place for it."""
        generation, since = waiting.generation, waiting.since
        if waiting.due > time.monotonic():
            return False
        if not waiting.suspect:
            link = self._place(generation, waiting.num_tokens)
            if link is not None:
                self._resume(generation, waiting.choices, link, since)
            return link is not None
        link = self._place_alone(generation)
        if link is None:
            return False
        log.warning(
            "%s was being computed when %d engines died; it runs alone on replica %s",
            generation.request.id,
            max(choice.deaths_here for choice in waiting.choices),
            link.replica,
        )
        self._clear(link)
        life = self._resume(generation, waiting.choices, link, since)
        self._lives.set_apart(life)
        return True

    # Places.

    def _there(self, generation: Generation) -> list[Link]:
        """The replicas within reach on which a generation could go on."""
        state = generation.state
        return [
            link
            for link in self._router.links()
            if state.model in link.card.names and state.digest in ("", link.card.digest)
        ]

    def _place(self, generation: Generation, num_tokens: int, stay: bool = True) -> Link | None:
        """The replica to go on at, None where there is none or those there have enough to do.

        With `stay` one that is leaving will do where there is no other.
        """
        there = self._there(generation)

        def fit(link: Link) -> bool:
            free = link in there and self._lives.is_free(link)
            return free and self._lives.has_pace(link, num_tokens)

        try:
            return self._router.choose(generation.state.model, generation.request, fit)
        except EngineLost:
            if not stay or not all(link.leaving for link in there):
                return None
            return next(filter(fit, there), None)

    def _place_alone(self, generation: Generation) -> Link | None:
        """A replica for a suspect; one at a time is set apart for each model."""
        there = self._there(generation)
        if self._lives.any_apart(there):
            return None
        try:
            return self._router.choose(
                generation.state.model, generation.request, lambda link: link in there
            )
        except EngineLost:
            return None

    def _clear(self, link: Link) -> None:
        """Move everything off a replica."""
        now = time.monotonic()
        for life in self._lives.on(link):
            choices = self._interrupt(life, "suspect")
            self._wait(life.generation, choices, now, f"replica {link.replica} is set apart")

    def _interrupt(self, life: Life, cause: str) -> tuple[Choice, ...]:
        """Stop what runs; it can go on elsewhere at once."""
        choices, generation = tuple(life.open), life.generation
        for choice in choices:
            self._lives.leave(choice)
            life.link.abort(generation.request.id, choice.sibling)
        self._metrics.moved(generation.state.model, cause, len(choices))
        return choices

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
            generation, beams = life.generation, life.generation.request.params.use_beam_search
            for group in [tuple(life.open)] if beams else [(choice,) for choice in life.open]:
                num_tokens = len(generation.request.prompt) + len(group[0].emitted)
                target = self._place(generation, num_tokens, stay=False)
                if target is None:
                    break
                for choice in group:
                    self._lives.leave(choice)
                    link.abort(generation.request.id, choice.sibling)
                self._resume(generation, group, target, time.monotonic())
                num_moved += len(group)
        if num_moved:
            self._metrics.moved(link.card.names[0], "left", num_moved)
            log.info("replica %s is leaving: %d streams moved", link.replica, num_moved)
