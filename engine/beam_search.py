"""`LLM.beam_search` in vLLM's shape: its parameters and what it gives back."""

from __future__ import annotations

from dataclasses import dataclass, field

from .errors import InvalidRequest
from .outputs import Logprob, RequestOutput
from .request import SamplingParams
from .text import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class BeamSearchParams:
    """How many beams to follow and how far; names and defaults are vLLM's.

    Finished beams are compared by log probability / output length ** `length_penalty`. With
    `include_stop_str_in_output` the text shows the token that ended it; `tokens` always do.
    """

    beam_width: int
    max_tokens: int
    ignore_eos: bool = False
    temperature: float = 0.0
    length_penalty: float = 1.0
    include_stop_str_in_output: bool = False


@dataclass(slots=True)
class BeamSearchSequence:
    """One beam: `tokens` and `text` begin with the prompt, `logprobs` with the output.

    `cum_logprob` is the sum of the output's log probabilities, without length penalty.
    """

    tokens: list[int]
    logprobs: list[dict[int, Logprob]] = field(default_factory=list)
    cum_logprob: float = 0.0
    text: str | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


@dataclass(slots=True)
class BeamSearchOutput:
    """The beams of one prompt, best first."""

    sequences: list[BeamSearchSequence]


def sampling_params(params: BeamSearchParams, max_logprobs: int) -> SamplingParams:
    """The same search as SamplingParams; one beam is greedy decoding. Raises InvalidRequest."""
    wide = params.beam_width > 1
    wanted = 2 * params.beam_width
    return SamplingParams(
        n=params.beam_width,
        use_beam_search=wide,
        temperature=params.temperature,
        length_penalty=params.length_penalty if wide else 1.0,
        max_tokens=params.max_tokens,
        ignore_eos=params.ignore_eos,
        logprobs=wanted if max_logprobs == -1 else min(wanted, max_logprobs),
        detokenize=False,
    )


def beams_of(
    output: RequestOutput, params: BeamSearchParams, tokenizer: Tokenizer
) -> BeamSearchOutput:
    """An answer as beams. Raises InvalidRequest where there are none."""
    sequences = []
    for made in output.outputs:
        if made.error is not None:
            raise InvalidRequest(f"the beam search failed: {made.error}")
        tokens = [*output.prompt_token_ids, *made.token_ids]
        ended = made.finish_reason == "stop" and not params.include_stop_str_in_output
        shown = tokens[:-1] if ended else tokens
        sequences.append(
            BeamSearchSequence(
                tokens=tokens,
                logprobs=made.logprobs or [],
                cum_logprob=made.cumulative_logprob or 0.0,
                text=tokenizer.decode(shown, skip_special_tokens=False),
                finish_reason=made.finish_reason,
                stop_reason=made.stop_reason,
            )
        )
    return BeamSearchOutput(sequences)
