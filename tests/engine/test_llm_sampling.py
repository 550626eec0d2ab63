"""What a small random Qwen3 says, held against transformers."""

from __future__ import annotations

from queue import SimpleQueue
from typing import Any

import pytest
import torch
from shoal.engine.engine import AsyncEngine
from shoal.engine.llm import LLM, Logprob
from shoal.engine.request import Request, SamplingParams, Update
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
)

from .tiny_qwen3 import EOS, GREEDY, KEYS, PROMPTS, VOCAB, idle


@pytest.fixture(scope="module")
def theirs(folder: str) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config = GenerationConfig(pad_token_id=0)
    return model


def theirs_greedy(theirs: Any, ids: list[int], num: int) -> list[int]:
    """transformers' own greedy continuation of `ids`."""
    with torch.inference_mode():
        whole = theirs.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=num)
    return whole[0, len(ids) :].tolist()


def run(engine: AsyncEngine, request: Request) -> list[int]:
    """The tokens of one request."""
    updates: SimpleQueue[list[Update]] = SimpleQueue()
    engine.submit(request, updates.put)
    tokens: list[int] = []
    while True:
        for update in updates.get(timeout=60):
            assert not update.error
            tokens += update.tokens
            if update.finish is not None:
                return tokens


def test_greedy_is_transformers_own(llm: LLM, theirs: Any) -> None:
    outputs = llm.generate(PROMPTS, GREEDY, use_tqdm=False)
    assert [output.prompt for output in outputs] == PROMPTS
    for output in outputs:
        want = theirs_greedy(theirs, output.prompt_token_ids, 24)
        made = output.outputs[0]
        assert made.token_ids == want
        assert made.text == output.text == llm.get_tokenizer().decode(want, True)
        assert (made.finish_reason, made.stop_reason, made.index) == ("length", None, 0)
        assert output.finished and made.finished()
        assert made.logprobs is None is made.cumulative_logprob is output.prompt_logprobs
    assert len({tuple(output.outputs[0].token_ids) for output in outputs}) == len(PROMPTS)


def test_seeds_and_company(llm: LLM) -> None:
    drawn = SamplingParams(temperature=1.5, seed=11, n=3, max_tokens=16, ignore_eos=True)
    alone = llm.generate("Hello", drawn, use_tqdm=False)[0]
    texts = [made.token_ids for made in alone.outputs]
    assert len({tuple(ids) for ids in texts}) == 3
    crowd = llm.generate(["what", "Hello", *PROMPTS], [GREEDY, drawn, *[GREEDY] * 6], False)
    assert [made.token_ids for made in crowd[1].outputs] == texts
    other = SamplingParams(temperature=1.5, seed=12, max_tokens=16, ignore_eos=True)
    assert llm.generate("Hello", other, use_tqdm=False)[0].outputs[0].token_ids != texts[0]


def test_unseeded_requests_follow_the_engines_seed(folder: str) -> None:
    drawn = SamplingParams(temperature=1.5, max_tokens=12, ignore_eos=True)
    told = []
    for seed in (5, 5, 6):
        with LLM(folder, **KEYS, seed=seed) as llm:
            outputs = llm.generate(["Hello", "Hello"], drawn, use_tqdm=False)
            told.append([output.outputs[0].token_ids for output in outputs])
    assert told[0] == told[1] != told[2]
    assert told[0][0] != told[0][1]


def test_stop_strings(llm: LLM) -> None:
    text_of = llm.tokenizer.token_text
    readable = [id for id in range(3, VOCAB) if text_of(id).isascii() and text_of(id).isprintable()]
    plain: dict[str, Any] = {
        "temperature": 0,
        "max_tokens": 24,
        "ignore_eos": True,
        "allowed_token_ids": [id for id in readable if text_of(id)],
    }
    whole = llm.generate("Hello", SamplingParams(**plain), use_tqdm=False)[0].outputs[0]
    stop = "".join(text_of(id) for id in whole.token_ids[7:10])
    end = whole.text.find(stop) + len(stop)
    assert len(stop) >= 2 and len(whole.token_ids) == 24
    for include in (False, True):
        params = SamplingParams(
            **plain, stop=["never", stop], include_stop_str_in_output=include, logprobs=1
        )
        made = llm.generate("Hello", params, use_tqdm=False)[0].outputs[0]
        assert made.text == whole.text[: end if include else end - len(stop)]
        assert (made.finish_reason, made.stop_reason) == ("stop", stop)
        assert made.token_ids == whole.token_ids[: len(made.token_ids)]
        assert made.logprobs is not None and len(made.logprobs) == len(made.token_ids)
        assert stop in llm.tokenizer.decode(made.token_ids)
        assert stop not in llm.tokenizer.decode(made.token_ids[:-1])
    idle(llm)


def test_stop_tokens(llm: LLM) -> None:
    whole = llm.generate("Hello", GREEDY, use_tqdm=False)[0].outputs[0].token_ids
    stop = next(id for i, id in enumerate(whole) if i > 3 and id not in whole[:i])
    params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, stop_token_ids=[stop])
    made = llm.generate("Hello", params, use_tqdm=False)[0].outputs[0]
    assert made.token_ids == whole[: whole.index(stop) + 1]
    assert (made.finish_reason, made.stop_reason) == ("stop", stop)
    assert made.text == llm.tokenizer.decode(made.token_ids[:-1])


def test_the_end_of_sequence(llm: LLM) -> None:
    always = SamplingParams(temperature=0, max_tokens=9, logit_bias={EOS: 100.0})
    made = llm.generate("Hello", always, use_tqdm=False)[0].outputs[0]
    assert (made.token_ids, made.text, made.stop_reason) == ([EOS], "", None)
    assert made.finish_reason == "stop"
    later = SamplingParams(temperature=0, max_tokens=9, min_tokens=4, logit_bias={EOS: 100.0})
    made = llm.generate("Hello", later, use_tqdm=False)[0].outputs[0]
    assert len(made.token_ids) == 5 and EOS not in made.token_ids[:4]


def test_logprobs(llm: LLM, theirs: Any) -> None:
    params = SamplingParams(
        temperature=0, max_tokens=6, ignore_eos=True, logprobs=3, prompt_logprobs=2
    )
    output = llm.generate("The capital of France", params, use_tqdm=False)[0]
    made, prompt = output.outputs[0], output.prompt_token_ids
    with torch.inference_mode():
        logits = theirs(torch.tensor([[*prompt, *made.token_ids]])).logits[0].double()
    wanted = torch.log_softmax(logits, -1)
    assert made.logprobs is not None and len(made.logprobs) == 6
    for i, (token, entry) in enumerate(zip(made.token_ids, made.logprobs, strict=True)):
        row = wanted[len(prompt) - 1 + i]
        assert next(iter(entry)) == token and len(entry) == 3
        assert set(entry) == set(row.topk(3).indices.tolist())
        for id, scored in entry.items():
            assert isinstance(scored, Logprob)
            assert scored.logprob == pytest.approx(float(row[id]), abs=1e-4)
            assert scored.rank == int((row > row[id]).sum()) + 1
            assert scored.decoded_token == llm.tokenizer.token_text(id)
    total = sum(e[t].logprob for e, t in zip(made.logprobs, made.token_ids, strict=True))
    assert made.cumulative_logprob == pytest.approx(total)
    scores = output.prompt_logprobs
    assert scores is not None and len(scores) == len(prompt) and scores[0] is None
    for i, (token, score) in enumerate(zip(prompt[1:], scores[1:], strict=True)):
        assert score is not None and 2 <= len(score) <= 3
        assert score[token].logprob == pytest.approx(float(wanted[i][token]), abs=1e-4)


def test_no_tokens_at_all(llm: LLM) -> None:
    params = SamplingParams(max_tokens=0, prompt_logprobs=0)
    output = llm.generate("Hello", params, use_tqdm=False)[0]
    made = output.outputs[0]
    assert (made.text, made.token_ids, made.finish_reason) == ("", [], "length")
    assert output.prompt_logprobs is not None
    assert len(output.prompt_logprobs) == len(output.prompt_token_ids)


def test_bad_words(llm: LLM) -> None:
    whole = llm.generate("Hello", GREEDY, use_tqdm=False)[0]
    ids = whole.outputs[0].token_ids
    word = next(text for text in map(llm.tokenizer.token_text, ids) if text.strip().isalpha())
    params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, bad_words=[word])
    made = llm.generate("Hello", params, use_tqdm=False)[0].outputs[0]
    assert made.token_ids != ids
    banned = tuple(llm.tokenizer.encode(word, add_special_tokens=False))
    runs = [tuple(made.token_ids[i : i + len(banned)]) for i in range(24)]
    assert banned not in runs


def test_detokenize_false(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True, detokenize=False)
    made = llm.generate("Hello", params, use_tqdm=False)[0].outputs[0]
    assert made.text == "" and len(made.token_ids) == 4


@pytest.mark.parametrize(
    "params",
    [
        GREEDY,
        SamplingParams(
            temperature=1.2,
            seed=3,
            max_tokens=24,
            ignore_eos=True,
            top_p=0.9,
            repetition_penalty=1.2,
            presence_penalty=0.5,
            frequency_penalty=0.5,
            min_tokens=5,
        ),
    ],
)
def test_emitted_tokens_go_on_exactly(llm: LLM, params: SamplingParams) -> None:
    prompt = tuple(llm.tokenizer.encode("The capital of France is"))
    drawn = Request(id="whole", prompt=prompt, params=llm._seeds.give(_r(prompt, params)).params)
    whole = run(llm._engine, drawn)
    assert len(whole) == 24
    for cut in (1, 7, 15, 16, 23):
        rest = Request(
            id=f"cut-{cut}", prompt=prompt, params=drawn.params, emitted=tuple(whole[:cut])
        )
        assert whole[:cut] + run(llm._engine, rest) == whole


def _r(prompt: tuple[int, ...], params: SamplingParams) -> Request:
    return Request(id="r", prompt=prompt, params=params)
