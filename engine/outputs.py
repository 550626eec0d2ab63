"""What `LLM` gives back, in vLLM's shape, and how it is put together from updates."""

from __future__ import annotations

from dataclasses import dataclass, field

from .request import FinishReason, Request, SamplingParams, TokenLogprobs, Update
from .text import TextStream, Tokenizer


@dataclass(slots=True)
class Logprob:
    """One token's log probability at one position; rank 1 is the most probable."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass(slots=True)
class CompletionOutput:
    """One of the `n` answers.

    `finish_reason`: stop, length, or error, with the reason in `error`. `stop_reason`: the stop
    string or stop token that ended it. `logprobs` has for each token a dict of the token and the
    most probable ones.
    """

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    error: str | None = None

    def finished(self) -> bool:
        """Whether it has ended."""
        return self.finish_reason is not None


@dataclass(slots=True)
class RequestOutput:
    """The answers to one prompt; `prompt` is None where token ids were given."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None
    outputs: list[CompletionOutput] = field(default_factory=list)
    finished: bool = False
    metrics: None = None
    lora_request: None = None
    num_cached_tokens: int | None = None

    @property
    def text(self) -> str:
        """The first answer's text."""
        return self.outputs[0].text


class Answer:
    """A RequestOutput in the making.

    `asked`: what the caller wants, where the request asks for more: of more candidates the best are
    kept, and log probabilities that only served to choose are left out.
    """

    def __init__(
        self,
        request: Request,
        prompt: str | None,
        tokenizer: Tokenizer,
        asked: SamplingParams | None = None,
    ) -> None:
        self.request = request
        self._asked = asked or request.params
        self._tokenizer = tokenizer
        self._streams = [
            TextStream(tokenizer, request.params, request.prompt) for _ in range(request.params.n)
        ]
        self.output = RequestOutput(
            request_id=request.id,
            prompt=prompt,
            prompt_token_ids=list(request.prompt),
            outputs=[
                CompletionOutput(index=i, text="", token_ids=[]) for i in range(request.params.n)
            ],
        )
        if request.params.logprobs is not None:
            for made in self.output.outputs:
                made.logprobs, made.cumulative_logprob = [], 0.0

    def take(self, update: Update) -> bool:
        """Enter an update. Whether a stop string ended its sibling, which the engine has to hear.

        What comes for a sibling that has ended is ignored.
        """
        made, stream = self.output.outputs[update.sibling], self._streams[update.sibling]
        if made.finished():
            return False
        if update.num_cached is not None:
            self.output.num_cached_tokens = max(
                self.output.num_cached_tokens or 0, update.num_cached
            )
        if update.prompt_logprobs is not None:
            self.output.prompt_logprobs = self._prompt_logprobs(update.prompt_logprobs)
        stream.take(update)
        made.token_ids += update.tokens
        del made.token_ids[stream.num_tokens :]
        if made.logprobs is not None and made.cumulative_logprob is not None:
            room = stream.num_tokens - len(made.logprobs)
            pairs = zip(update.tokens, update.logprobs or (), strict=False)
            for token, scores in list(pairs)[:room]:
                made.logprobs.append(self._logprobs(token, scores))
                made.cumulative_logprob += scores.logprob
        if stream.stopped is not None:
            self._end(made, stream, FinishReason.STOP, stream.stopped)
            return update.finish is None
        if update.finish is not None:
            made.error = update.error
            self._end(made, stream, update.finish, update.stop_reason)
        return False

    def _end(
        self,
        made: CompletionOutput,
        stream: TextStream,
        reason: FinishReason,
        stop: int | str | None,
    ) -> None:
        made.text, made.finish_reason, made.stop_reason = stream.text, reason.value, stop
        self.output.finished = all(other.finished() for other in self.output.outputs)
        if self._asked.logprobs is None:
            made.logprobs = None
        if self.output.finished and self._asked.n < len(self.output.outputs):
            self.output.outputs = self._best()

    def _best(self) -> list[CompletionOutput]:
        """The answers of the greatest cumulative log probability, the first made first of equals;
        one that failed comes last.
        """
        made = sorted(
            self.output.outputs,
            key=lambda output: (output.error is not None, -(output.cumulative_logprob or 0.0)),
        )
        for index, output in enumerate(made):
            output.index = index
        return made[: self._asked.n]

    def _logprobs(self, token: int, scores: TokenLogprobs) -> dict[int, Logprob]:
        """The token itself first, then the most probable ones."""
        text = self._tokenizer.token_text
        found = {token: Logprob(scores.logprob, scores.rank, text(token))}
        for rank, (other, logprob) in enumerate(scores.top, start=1):
            found.setdefault(other, Logprob(logprob, rank, text(other)))
        return found

    def _prompt_logprobs(
        self, scores: tuple[TokenLogprobs | None, ...]
    ) -> list[dict[int, Logprob] | None]:
        return [
            None if score is None else self._logprobs(token, score)
            for token, score in zip(self.request.prompt, scores, strict=True)
        ]
