"""All that must be known of an answer to go on with it anywhere: one object of plain data.

What parsers and draws need follows from it: prompt, parameters, seed and the tokens so far. It can
be stored, and a `Generation` made of what was stored goes on from the next token.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from ..engine.request import FinishReason, Request, TokenLogprobs, with_values
from .link import ModelCard


@dataclass(slots=True, kw_only=True, eq=False)
class Choice:
    """One sibling: its tokens so far, what of them has been told, and how it ended.

    `index` is its place in the answer, `cumulative` the sum of the log probabilities of its tokens,
    where the engine tells them. `held` are tokens whose text may still turn out to be half a
    character or the beginning of a stop string. `epoch` counts its starts, `deaths` the engines
    that died or got stuck under it, `deaths_here` those of them since its last token.
    """

    index: int
    sibling: int
    epoch: int = 0
    emitted: list[int] = field(default_factory=list)
    num_tokens: int = 0
    cumulative: float = 0.0
    held: tuple[int, ...] = ()
    held_logprobs: tuple[TokenLogprobs, ...] | None = None
    finish: FinishReason | None = None
    stop_reason: int | str | None = None
    deaths: int = 0
    deaths_here: int = 0


@dataclass(slots=True, kw_only=True, eq=False)
class StreamState:
    """One prompt and its siblings.

    `request` is as it was first sent, with its seed, in ids of `vocabulary`, where that is known;
    `digest` names the weights that it must stay on, once it has begun on some. Of more choices than
    `num_answers` the best are answered. A `silent` answer shows no token. `num_cached` and
    `prompt_logprobs` are as first told.
    """

    request: Request
    model: str
    choices: tuple[Choice, ...]
    num_answers: int
    silent: bool = False
    vocabulary: tuple[str, str | None] | None = None
    digest: str = ""
    num_cached: int | None = None
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None

    def fits(self, card: ModelCard) -> bool:
        """Whether it can begin, or go on, on a replica."""
        return (
            self.model in card.names
            and self.digest in ("", card.digest)
            and self.vocabulary in (None, card.vocabulary)
        )

    def groups(self, choices: Iterable[Choice]) -> list[tuple[Choice, ...]]:
        """Choices that go on together: beams all at once, others each alone."""
        if self.request.params.use_beam_search:
            return [tuple(choices)]
        return [(choice,) for choice in choices]

    def num_anew(self, choice: Choice) -> int:
        """The tokens that are computed anew where `choice` goes on elsewhere."""
        return len(self.request.prompt) + len(choice.emitted)

    def remainder(self, choice: Choice) -> Request:
        """The request that goes on with `choice`, as its epoch says, after what it has emitted.

        Beams go on all together, from their prompt: a search says nothing before its end, and
        begun anew it finds the same. It is one request for all choices.
        """
        if self.request.params.use_beam_search:
            return replace(self.request, epoch=choice.epoch)
        params = with_values(self.request.params, n=1)
        if choice.sibling != self.request.sibling or self.prompt_logprobs is not None:
            params = with_values(params, prompt_logprobs=None)
        return replace(
            self.request,
            params=params,
            emitted=tuple(choice.emitted),
            sibling=choice.sibling,
            epoch=choice.epoch,
        )


def new_state(
    request: Request,
    model: str,
    *,
    first_index: int = 0,
    num_answers: int | None = None,
    silent: bool = False,
    vocabulary: tuple[str, str | None] | None = None,
) -> StreamState:
    """The state of a request that has not begun; its answers are numbered from `first_index`."""
    num = request.params.n
    return StreamState(
        request=request,
        model=model,
        choices=tuple(
            Choice(index=first_index + i, sibling=request.sibling + i, epoch=request.epoch)
            for i in range(num)
        ),
        num_answers=num if num_answers is None else num_answers,
        silent=silent,
        vocabulary=vocabulary,
    )
