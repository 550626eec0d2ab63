"""A generation under way: what was asked, what has come back, and how to go on with it elsewhere.

    Link ── Update ──> Generation ── Choice.take ──> Delta ──> Answer (formats and sends)

A `Generation` is all that is known of one prompt's answer. Whatever happens to the engine behind
it, `remainder` rebuilds the request for each sibling that has not ended.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from ..engine.errors import EngineLost, ShoalError
from ..engine.request import FinishReason, Request, TokenLogprobs, Update
from ..engine.text import TextStream, Tokenizer
from .link import Link

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


class Choice:
    """One sibling: its tokens so far, its text, and how it ended.

    `index` is its place in the answer, `cumulative` the sum of the log probabilities of its tokens,
    where the engine tells them. Tokens are held back with their text, while the text may
    still turn out to be half a character or the beginning of a stop string.
    """

    __slots__ = (
        "_held",
        "_held_logprobs",
        "_silent",
        "cumulative",
        "emitted",
        "finish",
        "index",
        "num_tokens",
        "sibling",
        "stop_reason",
        "text",
    )

    def __init__(self, index: int, sibling: int, text: TextStream, silent: bool) -> None:
        self.index = index
        self.sibling = sibling
        self.text = text
        self.emitted: list[int] = []
        self.num_tokens = 0
        self.cumulative = 0.0
        self.finish: FinishReason | None = None
        self.stop_reason: int | str | None = None
        self._silent = silent
        self._held: tuple[int, ...] = ()
        self._held_logprobs: tuple[TokenLogprobs, ...] | None = None

    def take(self, update: Update) -> Delta | None:
        """Add what an update brings; what may be shown of it, None if nothing may yet.

        A stop string ends the choice here, before the engine knows of it.
        """
        if self._silent:
            self.finish = update.finish and FinishReason.LENGTH
            return None if self.finish is None else Delta("", (), None, self.finish)
        self.emitted.extend(update.tokens)
        shown = self.text.take(update)
        tokens, logprobs = update.tokens, update.logprobs
        if self.text.stopped is not None:
            self.finish, self.stop_reason = FinishReason.STOP, self.text.stopped
            if (over := len(self.emitted) - self.text.num_tokens) > 0:
                tokens = tokens[:-over]
                logprobs = logprobs and logprobs[:-over]
        elif update.finish is not None:
            self.finish, self.stop_reason = update.finish, update.stop_reason
        self.num_tokens += len(tokens)
        if logprobs:
            self.cumulative += sum(entry.logprob for entry in logprobs)
        if self._held:
            tokens = self._held + tokens
            if logprobs is not None or self._held_logprobs is not None:
                logprobs = (self._held_logprobs or ()) + (logprobs or ())
        if not shown and self.finish is None:
            self._held, self._held_logprobs = tokens, logprobs
            return None
        self._held, self._held_logprobs = (), None
        return Delta(shown, tokens, logprobs, self.finish, self.stop_reason)


class Generation:
    """One prompt and its siblings; the state from which each of them can be resumed.

    `request` is as it was first sent, with its seed; `digest` names the weights it must stay on;
    `epoch` counts its starts, and updates of an older one are dropped. `on_delta` gets what is new
    of each choice, `on_error` the error that ended all of them; neither is called after `abort`.
    """

    __slots__ = (
        "_num_answers",
        "_on_delta",
        "_on_error",
        "began",
        "choices",
        "digest",
        "ended",
        "epoch",
        "first_token",
        "last_token",
        "link",
        "num_cached",
        "prompt_logprobs",
        "request",
    )

    def __init__(
        self,
        request: Request,
        tokenizer: Tokenizer,
        *,
        first_index: int = 0,
        num_answers: int | None = None,
        silent: bool = False,
        on_delta: Callable[[Generation, Choice, Delta], None],
        on_error: Callable[[ShoalError], None],
    ) -> None:
        self.request = request
        self.epoch = request.epoch
        self.digest = ""
        self.link: Link | None = None
        self.choices = tuple(
            Choice(
                first_index + i, i, TextStream(tokenizer, request.params, request.prompt), silent
            )
            for i in range(request.params.n)
        )
        self._num_answers = request.params.n if num_answers is None else num_answers
        self.num_cached = 0
        self.prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None
        self.began = time.monotonic()
        self.first_token = 0.0
        self.last_token = 0.0
        self.ended = False
        self._on_delta = on_delta
        self._on_error = on_error

    def begin(self, link: Link) -> None:
        """Send the request. What comes of it, a refusal too, comes to the callbacks."""
        self.link = link
        self.digest = link.card.digest
        link.submit(self.request, self._receive)

    def answers(self) -> tuple[Choice, ...]:
        """The choices to answer with, once all have ended.

        Of more candidates than answers those of the greatest cumulative log probability, best first
        and numbered so; equal ones in the order of their draws.
        """
        if self._num_answers == len(self.choices):
            return self.choices
        first = self.choices[0].index
        best = sorted(self.choices, key=lambda choice: -choice.cumulative)[: self._num_answers]
        for index, choice in enumerate(best, first):
            choice.index = index
        return tuple(best)

    def remainder(self, choice: Choice) -> Request:
        """The request that goes on with `choice` after what it has emitted.

        Beams go on all together, from their prompt: a search says nothing before its end, and
        begun anew it finds the same. It is one request for all choices.
        """
        if self.request.params.use_beam_search:
            return replace(self.request, epoch=self.epoch + 1)
        return replace(
            self.request,
            params=replace(self.request.params, n=1),
            emitted=tuple(choice.emitted),
            sibling=choice.sibling,
            epoch=self.epoch + 1,
        )

    def abort(self) -> None:
        """Free what it holds, if it has not ended; nothing is heard of it any more."""
        if not self.ended:
            self.ended = True
            if self.link is not None:
                self.link.abort(self.request.id)

    def _receive(self, update: Update | ShoalError) -> None:
        if self.ended:
            return
        if isinstance(update, ShoalError):
            self.ended = True
            self._on_error(update)
            return
        try:
            self._take(update)
        except Exception:
            log.exception("%s: an update could not be answered", self.request.id)
            self.abort()
            self._on_error(ShoalError("internal error; see the log"))

    def _take(self, update: Update) -> None:
        choice = self.choices[update.sibling]
        if choice.finish is not None or update.epoch != self.epoch:
            return
        if update.finish in (FinishReason.ERROR, FinishReason.ABORT):
            self._lose(update)
            return
        if update.num_cached is not None:
            self.num_cached = max(self.num_cached, update.num_cached)
            self.prompt_logprobs = update.prompt_logprobs or self.prompt_logprobs
        if update.tokens:
            self.last_token = time.monotonic()
            self.first_token = self.first_token or self.last_token
        delta = choice.take(update)
        if choice.finish is not None:
            self._end(choice, update)
        if delta is not None:
            self._on_delta(self, choice, delta)

    def _end(self, choice: Choice, update: Update) -> None:
        self.ended = all(other.finish is not None for other in self.choices)
        if update.finish is None and self.link is not None:
            self.link.abort(self.request.id, choice.sibling)

    def _lose(self, update: Update) -> None:
        self.abort()
        if update.finish is FinishReason.ABORT:
            self._on_error(EngineLost("the engine gave this request up; send it again"))
        else:
            self._on_error(ShoalError(update.error or "the engine failed on this request"))
