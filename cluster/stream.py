"""A generation under way: what has come back of it, as text.

    Link ── Update ──> Generation ── Teller.take ──> Delta ──> Answer (formats and sends)

Which replica works on it, and where it goes on when that one is lost, is the matter of
`failover.py`; all that it needs is in `Generation.state`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import NamedTuple

from ..engine.errors import EngineLost, ShoalError
from ..engine.request import FinishReason, Request, TokenLogprobs, Update, Waits
from ..engine.text import TextStream, Tokenizer
from .metrics import Meter
from .state import Choice, StreamState

log = logging.getLogger(__name__)


class Delta(NamedTuple):
    """What is new of one choice; `finish` is set on its last one.

    `logprobs`, where they were asked for, has an entry a token.
    """

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] | None
    finish: FinishReason | None = None
    stop_reason: int | str | None = None


class Teller:
    """Makes text of a choice's tokens; tokens are held back with their text.

    `last_token`: when the last ones came.
    """

    __slots__ = ("_choice", "_silent", "_text", "last_token")

    def __init__(self, choice: Choice, state: StreamState, tokenizer: Tokenizer) -> None:
        self._choice = choice
        self._silent = state.silent
        self.last_token: float | None = None
        sent = state.request
        self._text = TextStream(tokenizer, sent.params, sent.prompt, choice.emitted)

    def take(self, update: Update) -> Delta | None:
        """Add what an update brings; what may be shown of it, None if nothing may yet.

        A stop string ends the choice here, before the engine knows of it.
        """
        choice, text = self._choice, self._text
        if self._silent:
            choice.finish = update.finish and FinishReason.LENGTH
            return None if choice.finish is None else Delta("", (), None, choice.finish)
        choice.emitted.extend(update.tokens)
        shown = text.take(update)
        tokens, logprobs = update.tokens, update.logprobs
        if text.stopped is not None:
            choice.finish, choice.stop_reason = FinishReason.STOP, text.stopped
            if (over := len(choice.emitted) - text.num_tokens) > 0:
                tokens = tokens[:-over]
                logprobs = logprobs and logprobs[:-over]
        elif update.finish is not None:
            choice.finish, choice.stop_reason = update.finish, update.stop_reason
        choice.num_tokens += len(tokens)
        if logprobs:
            choice.cumulative += sum(entry.logprob for entry in logprobs)
        if choice.held:
            tokens = choice.held + tokens
            if logprobs is not None or choice.held_logprobs is not None:
                logprobs = (choice.held_logprobs or ()) + (logprobs or ())
        if not shown and choice.finish is None:
            choice.held, choice.held_logprobs = tokens, logprobs
            return None
        choice.held, choice.held_logprobs = (), None
        return Delta(shown, tokens, logprobs, choice.finish, choice.stop_reason)


class Generation:
    """One prompt and its siblings, from `state` on, which may be new or have been stored.

    `on_delta` gets what is new of each choice, `on_error` the error that ended all of them; neither
    is called once it has `ended`. `meter` counts what comes, once it has begun somewhere;
    `predicted` are the prompt tokens that were taken to be cached there.
    """

    __slots__ = (
        "_on_delta",
        "_on_error",
        "_tellers",
        "began",
        "ended",
        "first_token",
        "last_token",
        "meter",
        "predicted",
        "state",
        "waits",
    )

    def __init__(
        self,
        state: StreamState,
        tokenizer: Tokenizer,
        *,
        on_delta: Callable[[Generation, Choice, Delta], None],
        on_error: Callable[[ShoalError], None],
    ) -> None:
        self.state = state
        self._tellers = {choice: Teller(choice, state, tokenizer) for choice in state.choices}
        self.began = time.monotonic()
        self.first_token = 0.0
        self.last_token = 0.0
        self.meter: Meter | None = None
        self.predicted = 0
        self.waits: Waits | None = None
        self.ended = False
        self._on_delta = on_delta
        self._on_error = on_error

    @property
    def request(self) -> Request:
        """As it was first sent."""
        return self.state.request

    @property
    def choices(self) -> tuple[Choice, ...]:
        """All candidates, in the order of their draws."""
        return self.state.choices

    @property
    def open(self) -> list[Choice]:
        """The choices that have not ended."""
        return [choice for choice in self.state.choices if choice.finish is None]

    def answers(self) -> tuple[Choice, ...]:
        """The choices to answer with, once all have ended.

        Of more candidates than answers those of the greatest cumulative log probability, best first
        and numbered so; equal ones in the order of their draws.
        """
        choices, num_answers = self.state.choices, self.state.num_answers
        if num_answers == len(choices):
            return choices
        first = choices[0].index
        best = sorted(choices, key=lambda choice: -choice.cumulative)[:num_answers]
        for index, choice in enumerate(best, first):
            choice.index = index
        return tuple(best)

    def take(self, choice: Choice, update: Update) -> None:
        """Enter what an engine's step brought a choice, and pass on what may be shown.

        What cannot be answered ends all of it.
        """
        try:
            self._take(choice, update)
        except Exception:
            log.exception("%s: an update could not be answered", self.request.id)
            self.ended = False  # where it was to be the last one, nobody has been told
            self.fail(ShoalError("internal error; see the log"))

    def fail(self, error: ShoalError) -> None:
        """End all of it with an error, unless it has ended."""
        if not self.ended:
            self.ended = True
            self._on_error(error)

    def _take(self, choice: Choice, update: Update) -> None:
        state = self.state
        if update.finish is FinishReason.ABORT:
            self.fail(EngineLost("the engine gave this request up; send it again"))
            return
        if update.finish is FinishReason.ERROR:
            self.fail(ShoalError(update.error or "the engine failed on this request"))
            return
        if update.num_cached is not None:
            if state.num_cached is None or choice.epoch == self.request.epoch:
                state.num_cached = max(state.num_cached or 0, update.num_cached)
            state.prompt_logprobs = state.prompt_logprobs or update.prompt_logprobs
            self.waits = self.waits or update.waits
        teller = self._tellers[choice]
        if update.tokens:
            choice.deaths_here = 0
            self._mark(teller, len(update.tokens))
        delta = teller.take(update)
        self.ended = not self.open
        if delta is not None:
            self._on_delta(self, choice, delta)

    def _mark(self, teller: Teller, num_tokens: int) -> None:
        now, before = time.monotonic(), teller.last_token
        self.first_token = self.first_token or now
        self.last_token = teller.last_token = now
        if self.meter is not None:
            self.meter.tokens(num_tokens, None if before is None else now - before)
