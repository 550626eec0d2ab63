"""Beams, held against transformers' own."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from shoal.engine.beam_search import BeamSearchParams
from shoal.engine.bounds import MAX_BEAM_STOPS
from shoal.engine.errors import InvalidRequest
from shoal.engine.features.beams import BeamSearch
from shoal.engine.llm import LLM
from shoal.engine.plan import Candidate
from shoal.engine.request import SamplingParams, TokenLogprobs
from transformers import AutoModelForCausalLM, GenerationConfig

NEW = 12
KEYS: dict[str, Any] = {
    "dtype": "float32",
    "max_model_len": 96,
    "max_num_seqs": 24,
    "block_size": 4,
    "threads": 1,
}
SEARCHES = [
    {"width": width, "length_penalty": penalty, "early_stopping": early, "min_tokens": least}
    for (width, least), penalty, early in itertools.product(
        ((2, 5), (5, 0)), (1.0, 0.0, -1.0), (False, True, "never")
    )
]


def params_of(search: dict[str, Any], ends: list[int], **more: Any) -> SamplingParams:
    values = {name: value for name, value in search.items() if name != "width"}
    return SamplingParams(
        n=search["width"],
        use_beam_search=True,
        temperature=0,
        max_tokens=NEW,
        stop_token_ids=ends,
        **{**values, **more},
    )


def theirs_of(model: Any, ids: list[int], search: dict[str, Any], ends: list[int]) -> Any:
    """transformers' beams of a prompt, cut after their ends, and their scores."""
    with torch.inference_mode():
        made = model.generate(
            torch.tensor([ids]),
            num_beams=search["width"],
            num_return_sequences=search["width"],
            length_penalty=search["length_penalty"],
            early_stopping=search["early_stopping"],
            min_new_tokens=search["min_tokens"] or None,
            max_new_tokens=NEW,
            eos_token_id=ends or None,
            pad_token_id=0,
            do_sample=False,
            return_dict_in_generate=True,
            output_scores=True,
        )
    beams = []
    for tokens in made.sequences[:, len(ids) :].tolist():
        length = next((i for i, token in enumerate(tokens, 1) if token in ends), len(tokens))
        beams.append(tokens[:length])
    return beams, made.sequences_scores.tolist()


def load_theirs(folder: str) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config = GenerationConfig(pad_token_id=0)
    return model


def compare(llm: LLM, theirs: Any, prompts: list[list[int]], ends: list[int]) -> dict[str, int]:
    """Every search of every prompt at once, in company; how the beams ended."""
    jobs = list(itertools.product(prompts, SEARCHES))
    given = [{"prompt_token_ids": ids} for ids, _ in jobs]
    chosen = [params_of(search, ends) for _, search in jobs]
    outputs = llm.generate(given, chosen, use_tqdm=False)
    known = sorted({*ends, *llm.capacity.eos_token_ids})
    found: dict[str, int] = {}
    for (ids, search), output in zip(jobs, outputs, strict=True):
        beams, scores = theirs_of(theirs, ids, search, known)
        assert [made.token_ids for made in output.outputs] == beams, search
        for made, score in zip(output.outputs, scores, strict=True):
            worth = (made.cumulative_logprob or 0) / len(made.token_ids) ** search["length_penalty"]
            assert worth == pytest.approx(score, abs=2e-4)
            reason = made.finish_reason or ""
            found[reason] = found.get(reason, 0) + 1
    return found


TIGHT = {
    "alone": {"num_gpu_blocks_override": 400},
    "depth 2, in chunks": {
        "async_scheduling": True,
        "max_num_batched_tokens": 24,
        "enable_prefix_caching": False,
        "num_gpu_blocks_override": 400,
    },
    "preempted": {"num_gpu_blocks_override": 30, "enable_prefix_caching": False},
}


@pytest.mark.parametrize("keys", TIGHT.values(), ids=list(TIGHT))
def test_random_models_beams_are_transformers_own(folder: str, keys: dict[str, Any]) -> None:
    theirs = load_theirs(folder)
    prompts = [[5, 9, 301], [400, 17, 33, 8, 2, 91, 44, 7, 3]]
    with torch.inference_mode():
        likely = theirs(torch.tensor([prompts[0]])).logits[0, -1].topk(12).indices.tolist()
    with LLM(folder, **{**KEYS, **keys}) as llm:
        ends = sorted(set(likely) - set(llm.capacity.eos_token_ids))
        found = compare(llm, theirs, prompts, ends)
        if keys is TIGHT["preempted"]:
            assert llm._engine._scheduler.counters.preemptions
    assert set(found) == {"stop", "length"}


def test_another_random_models_beams(random_model: Callable[[str], Path], folder: str) -> None:
    llama = str(random_model("LlamaForCausalLM"))
    with LLM(llama, tokenizer=folder, **KEYS, num_gpu_blocks_override=200) as llm:
        compare(llm, load_theirs(llama), [[5, 9, 31], [7] * 6], [11, 12, 13])


def test_the_bundled_models_beams(tiny_model: Path) -> None:
    with LLM(str(tiny_model), **KEYS, num_gpu_blocks_override=400) as llm:
        prompts = [llm.tokenizer.encode(text) for text in ("The capital of France is", "Hello")]
        ends = llm.tokenizer.encode(".")[-1:]
        found = compare(llm, load_theirs(str(tiny_model)), prompts, ends)
    assert set(found) == {"stop", "length"}


def test_edits_are_those_of_transformers(folder: str) -> None:
    """Repetition penalty, bias and forbidden tokens apply to log probabilities, without weighing
    what is left anew.
    """
    theirs, ids = load_theirs(folder), [5, 9, 301]
    params = params_of(
        SEARCHES[0], [], repetition_penalty=1.3, logit_bias={44: 2.5}, bad_words_ids=((7,), (9, 5))
    )
    with torch.inference_mode():
        made = theirs.generate(
            torch.tensor([ids]),
            num_beams=2,
            num_return_sequences=2,
            max_new_tokens=NEW,
            do_sample=False,
            eos_token_id=1,
            repetition_penalty=1.3,
            sequence_bias=[[[44], 2.5]],
            bad_words_ids=[[7], [9, 5]],
        )
    with LLM(folder, **KEYS, num_gpu_blocks_override=200) as llm:
        [output] = llm.generate({"prompt_token_ids": ids}, params, use_tqdm=False)
    assert [beam.token_ids for beam in output.outputs] == made[:, len(ids) :].tolist()


def test_company_changes_no_score(llm: LLM) -> None:
    """To the last bit, as far as the kernels add in a fixed order; the beams in any case."""
    params = SamplingParams(n=3, use_beam_search=True, temperature=0, max_tokens=10, logprobs=2)
    [alone] = llm.generate("Hello, my name is", params, use_tqdm=False)
    drawn = SamplingParams(n=3, temperature=1.5, seed=3, max_tokens=20)
    given = ["what", "Hello, my name is", "def f", "Hello, my name is"]
    crowd = llm.generate(given, [drawn, params, drawn, params], use_tqdm=False)
    for output in (crowd[1], crowd[3]):
        for mine, other in zip(alone.outputs, output.outputs, strict=True):
            assert (mine.index, mine.token_ids) == (other.index, other.token_ids)
            assert mine.cumulative_logprob == pytest.approx(other.cumulative_logprob, abs=1e-4)
    for made in alone.outputs:
        assert made.logprobs is not None
        chosen = [entry[token] for entry, token in zip(made.logprobs, made.token_ids, strict=True)]
        assert made.cumulative_logprob == pytest.approx(sum(one.logprob for one in chosen))
        assert all(len(entry) in (2, 3) for entry in made.logprobs)
        assert all(
            (one.rank == 1) == (one.logprob == max(o.logprob for o in entry.values()))
            for one, entry in zip(chosen, made.logprobs, strict=True)
        )


def test_beam_search_in_vllms_shape(llm: LLM) -> None:
    prompts = [{"prompt": "Hello, my name is"}, {"prompt_token_ids": [5, 9, 301]}]
    params = BeamSearchParams(beam_width=3, max_tokens=8)
    outputs = llm.beam_search(prompts, params)
    same = SamplingParams(n=3, use_beam_search=True, temperature=0, max_tokens=8)
    wanted = llm.generate(prompts, same, use_tqdm=False)
    for output, want in zip(outputs, wanted, strict=True):
        assert len(output.sequences) == 3
        for beam, made in zip(output.sequences, want.outputs, strict=True):
            assert beam.tokens == want.prompt_token_ids + made.token_ids
            assert beam.cum_logprob == made.cumulative_logprob
            assert beam.text == llm.tokenizer.decode(beam.tokens, skip_special_tokens=False)
            assert len(beam.logprobs) == 8 and beam.finish_reason == made.finish_reason
    one_by_one = llm.beam_search(prompts, params, concurrency_limit=1)
    assert [o.sequences[0].tokens for o in one_by_one] == [o.sequences[0].tokens for o in outputs]
    [greedy] = llm.beam_search(prompts[:1], BeamSearchParams(beam_width=1, max_tokens=8))
    said = llm.generate(prompts[0], SamplingParams(temperature=0, max_tokens=8), use_tqdm=False)
    assert greedy.sequences[0].tokens[-8:] == said[0].outputs[0].token_ids


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"temperature": 0.7}, "temperature must be 0"),
        ({"top_p": 0.9}, "top_p must be 1"),
        ({"top_k": 5}, "top_k must be 0"),
        ({"n": 1}, "at least 2 beams"),
        ({"n": 3, "best_of": 2}, r"best_of must be between n \(3\)"),
        ({"stop": ["x"]}, "stop_token_ids"),
        (
            {"stop_token_ids": range(MAX_BEAM_STOPS + 1)},
            f"at most {MAX_BEAM_STOPS} ids with use_beam_search, got {MAX_BEAM_STOPS + 1}",
        ),
        ({"early_stopping": "always"}, "'never'"),
        ({"length_penalty": "1"}, "length_penalty must be a number"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"use_beam_search": False, "length_penalty": 0.5}, "needs use_beam_search"),
        ({"use_beam_search": False, "early_stopping": True}, "needs use_beam_search"),
        ({"best_of": 40}, "max_num_seqs=8"),
    ],
)
def test_what_a_search_cannot_do_is_refused_by_name(
    llm: LLM, wrong: dict[str, Any], named: str
) -> None:
    values: dict[str, Any] = {"n": 2, "use_beam_search": True, "temperature": 0}
    with pytest.raises(InvalidRequest, match=named):
        llm.generate("Hello", SamplingParams(**{**values, **wrong}), use_tqdm=False)


@pytest.mark.parametrize("seed", range(8))
def test_a_beam_need_tell_no_more_than_its_width_and_one_for_each_end(seed: int) -> None:
    """Whatever else could follow it, the search finds the same."""
    rng = random.Random(seed)
    width, vocabulary, ends = 3, 40, dict.fromkeys(rng.sample(range(40), 7), True)
    params = SamplingParams(n=width, use_beam_search=True, temperature=0)
    few, every = (BeamSearch(params, ends, 6) for _ in range(2))
    assert few.num_candidates == width + len(ends)
    heirs = None
    while heirs != {}:
        told = {}
        for member in range(width):
            scores = {token: -rng.randrange(1, 30) / 8 for token in range(vocabulary)}
            scores |= {end: -rng.randrange(1, 12) / 8 for end in ends}
            best = sorted(scores, key=lambda token: (-scores[token], token))
            told[member] = tuple(
                Candidate(token, scores[token], TokenLogprobs(scores[token], 1)) for token in best
            )
        heirs = few.advance({m: found[: few.num_candidates] for m, found in told.items()})
        assert heirs == every.advance(told)
    assert few.endings() == every.endings() != ()


def test_a_search_with_nowhere_to_go_fails_alone(llm: LLM) -> None:
    params = SamplingParams(
        n=2, use_beam_search=True, temperature=0, allowed_token_ids=[7], max_tokens=4
    )
    lone, fine = llm.generate(
        ["Hello", "what"], [params, SamplingParams(temperature=0, max_tokens=4)], use_tqdm=False
    )
    assert lone.outputs[0].token_ids == [7] * 4 and lone.outputs[0].finish_reason == "length"
    assert lone.outputs[1].error == "only 1 of 2 answers can be made"
    assert fine.outputs[0].finish_reason == "length"


def test_best_of_answers_the_most_probable(llm: LLM) -> None:
    """The same candidates as with n, which are keyed by their number; the best of them first."""
    values: dict[str, Any] = {"temperature": 1.3, "seed": 5, "max_tokens": 12, "logprobs": 0}
    [every] = llm.generate("Hello", SamplingParams(n=5, **values), use_tqdm=False)
    ranked = sorted(every.outputs, key=lambda made: -(made.cumulative_logprob or 0))
    assert [made.index for made in ranked] != list(range(5))
    [best] = llm.generate("Hello", SamplingParams(n=2, best_of=5, **values), use_tqdm=False)
    assert [made.token_ids for made in best.outputs] == [made.token_ids for made in ranked[:2]]
    assert [made.index for made in best.outputs] == [0, 1]
    values["logprobs"] = None
    [plain] = llm.generate("Hello", SamplingParams(n=2, best_of=5, **values), use_tqdm=False)
    assert [made.token_ids for made in plain.outputs] == [made.token_ids for made in ranked[:2]]
    assert all(made.logprobs is None for made in plain.outputs)
    stops = SamplingParams(n=1, best_of=4, stop="a", temperature=1.3, seed=5, max_tokens=12)
    [cut] = llm.generate("Hello", stops, use_tqdm=False)
    assert len(cut.outputs) == 1 and "a" not in cut.text


def test_truncated_prompts(llm: LLM) -> None:
    ids = list(range(2, 40))
    params = SamplingParams(truncate_prompt_tokens=5, max_tokens=2)
    [output] = llm.generate({"prompt_token_ids": ids}, params, use_tqdm=False)
    assert output.prompt_token_ids == ids[-5:]
    long = {"prompt_token_ids": [5] * 300}
    params = SamplingParams(truncate_prompt_tokens=-1, max_tokens=2)
    [output] = llm.generate(long, params, use_tqdm=False)
    assert len(output.prompt_token_ids) == 127 and len(output.outputs[0].token_ids) == 1
