"""Beams, best_of and scores of prompts over HTTP; the engine is real and prefills in chunks."""

import httpx2 as httpx
import openai
import pytest
import torch
from transformers import AutoModelForCausalLM

PROMPT = "the quick brown fox jumps over the lazy dog and says hello to the world again " * 2


@pytest.fixture(scope="module")
def theirs(model_folder):
    return AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()


def beams_of(theirs, ids, **settings):
    with torch.inference_mode():
        made = theirs.generate(
            torch.tensor([ids]), do_sample=False, max_new_tokens=10, pad_token_id=0, **settings
        )
    return made[:, len(ids) :].tolist()


@pytest.mark.parametrize("early", [False, True, "never"])
def test_beams_are_those_of_transformers(served, theirs, tokenizer, early):
    fields = {"use_beam_search": True, "early_stopping": early, "length_penalty": 0.5}
    fields |= {"return_token_ids": True}
    made = served.complete(prompt=PROMPT, n=2, best_of=4, max_tokens=10, extra_body=fields)
    wanted = beams_of(
        theirs,
        tokenizer.encode(PROMPT),
        num_beams=4,
        num_return_sequences=2,
        early_stopping=early,
        length_penalty=0.5,
    )
    assert [choice.index for choice in made.choices] == [0, 1]
    assert [list(choice.token_ids) for choice in made.choices] == wanted
    assert [choice.finish_reason for choice in made.choices] == ["length"] * 2
    assert made.usage.completion_tokens == 20


def test_beams_of_a_chat(served, theirs, tokenizer):
    messages = [{"role": "user", "content": "hello"}]
    fields = {"use_beam_search": True, "return_token_ids": True}
    made = served.client.chat.completions.create(
        model="m", messages=messages, n=3, max_tokens=10, logprobs=True, extra_body=fields
    )
    ids = made.prompt_token_ids
    wanted = beams_of(theirs, ids, num_beams=3, num_return_sequences=3)
    assert [list(choice.token_ids) for choice in made.choices] == wanted
    assert all(len(choice.logprobs.content) == 10 for choice in made.choices)


def test_several_prompts_and_beams_in_company(served):
    fields = {"use_beam_search": True}
    one = served.complete(prompt="a", n=2, max_tokens=6, extra_body=fields)
    many = served.complete(prompt=["fox", "a"], n=2, max_tokens=6, extra_body=fields)
    assert [choice.index for choice in many.choices] == [0, 1, 2, 3]
    texts = [choice.text for choice in many.choices]
    assert texts[2:] == [choice.text for choice in one.choices]


@pytest.mark.parametrize(
    ("fields", "param", "word"),
    [
        ({"temperature": 0.7}, "temperature", "must be 0"),
        ({"stop": "x"}, "stop", "stop_token_ids"),
        ({"n": 1}, "best_of", "at least 2"),
        ({"best_of": 100}, "best_of", "max_num_seqs=48"),
        ({"stream": True}, "use_beam_search", "stream"),
    ],
)
def test_what_beams_cannot_do_is_refused_by_name(served, fields, param, word):
    with pytest.raises(openai.BadRequestError) as caught:
        served.complete(**{"n": 2, "extra_body": {"use_beam_search": True}, **fields})
    assert caught.value.param == param
    assert word in caught.value.body["message"]


def test_best_of_answers_the_most_probable_and_counts_all(served):
    fields = {"logprobs": 0, "max_tokens": 8, "extra_body": {"ignore_eos": True}}
    every = served.complete(n=5, **fields)
    ranked = sorted(every.choices, key=lambda choice: -sum(choice.logprobs.token_logprobs))
    assert [choice.index for choice in ranked] != [0, 1, 2, 3, 4]
    best = served.complete(n=2, best_of=5, **fields)
    assert [choice.index for choice in best.choices] == [0, 1]
    assert [choice.text for choice in best.choices] == [choice.text for choice in ranked[:2]]
    assert best.usage.completion_tokens == every.usage.completion_tokens == 40
    plain = served.complete(n=2, best_of=5, **{**fields, "logprobs": openai.omit})
    assert [choice.text for choice in plain.choices] == [choice.text for choice in ranked[:2]]
    assert plain.choices[0].logprobs is None
    pair = served.complete(prompt=["a", "the quick"], n=2, best_of=5, echo=True, **fields)
    assert [choice.index for choice in pair.choices] == [0, 1, 2, 3]
    assert [choice.text.startswith("the quick") for choice in pair.choices] == [0, 0, 1, 1]
    assert pair.choices[2].text == "the quick" + ranked[0].text


def test_best_of_is_not_streamed(served):
    with pytest.raises(openai.BadRequestError, match="stream: true does not go with best_of"):
        served.complete(best_of=2, stream=True)
    assert list(served.complete(n=2, best_of=2, stream=True, max_tokens=2))


def scored_as_harnesses_do(answer, num_context):
    """What lm-eval's `local-completions` reads: each choice's sum, and whether it was greedy."""
    found = []
    pairs = zip(sorted(answer["choices"], key=lambda c: c["index"]), num_context, strict=True)
    for choice, length in pairs:
        values = choice["logprobs"]["token_logprobs"][length:-1]
        tops = choice["logprobs"]["top_logprobs"][length:-1]
        greedy = all(v == max(top.values()) for v, top in zip(values, tops, strict=True))
        found.append((sum(values), greedy))
    return found


def loglikelihood(theirs, ids, num_context):
    with torch.inference_mode():
        logprobs = theirs(torch.tensor([ids])).logits[0].log_softmax(-1)
    wanted = torch.tensor(ids[num_context:])
    rows = logprobs[num_context - 1 : -1]
    return float(rows.gather(1, wanted[:, None]).sum()), bool((rows.argmax(-1) == wanted).all())


@pytest.mark.parametrize("form", ["lists of ids", "ids", "texts", "text"])
@pytest.mark.parametrize("max_tokens", [0, 1])
def test_loglikelihoods_are_those_of_transformers(served, theirs, tokenizer, form, max_tokens):
    pairs = [("the quick", " brown fox"), (PROMPT, "and more"), ("a", "gain")]
    encode = tokenizer.encode
    inputs = [(encode(context + rest), len(encode(context))) for context, rest in pairs]
    sent = [context + rest for context, rest in pairs]
    if "ids" in form:
        said = beams_of(theirs, encode("the lazy"), num_beams=1)[0]
        inputs = [(encode("the lazy") + said, len(encode("the lazy"))), *inputs]
        sent = [ids for ids, _ in inputs]
    if form in ("ids", "text"):
        sent, inputs = sent[0], inputs[:1]
    body = {"model": "m", "prompt": sent, "echo": True, "logprobs": 1, "seed": 1234}
    body |= {"temperature": 0, "max_tokens": max_tokens}
    answer = httpx.post(f"{served.url}/v1/completions", json=body, timeout=60).json()
    for choice, (ids, _) in zip(answer["choices"], inputs, strict=True):
        logprobs = choice["logprobs"]
        assert logprobs["token_logprobs"][0] is None and logprobs["top_logprobs"][0] is None
        assert {len(column) for column in logprobs.values()} == {len(ids) + max_tokens}
        for token, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
            assert choice["text"].startswith(token, offset) or token.startswith(("<", "bytes:"))
        if not max_tokens:  # as if one token came after the prompt
            logprobs["token_logprobs"].append(0)
            logprobs["top_logprobs"].append({})
    assert answer["usage"]["completion_tokens"] == max_tokens * len(inputs)
    found = scored_as_harnesses_do(answer, [length for _, length in inputs])
    for (value, is_greedy), (ids, length) in zip(found, inputs, strict=True):
        want, want_greedy = loglikelihood(theirs, ids, length)
        assert value == pytest.approx(want, abs=1e-4)
        assert is_greedy is want_greedy
    assert found[0][1] is ("ids" in form), "a greedy continuation, and only that, counts as such"


@pytest.mark.parametrize("end", [{"logit_bias": {"1": 100}}, {"stop_token_ids": [7]}])
def test_the_one_token_is_listed_also_where_it_ends_the_text(served, end):
    bias = {"logit_bias": {"7": 100}} if "stop_token_ids" in end else {}
    answer = served.complete(
        prompt=[5, 6],
        echo=True,
        max_tokens=1,
        logprobs=1,
        temperature=0,
        extra_body={**bias, **end},
    ).choices[0]
    assert answer.finish_reason == "stop"
    assert len(answer.logprobs.tokens) == len(answer.logprobs.token_logprobs) == 3
    assert answer.logprobs.top_logprobs[2].keys() >= {answer.logprobs.tokens[2]}


def test_no_tokens_at_all(served):
    bare = served.complete(max_tokens=0, logprobs=1, n=2)
    assert [choice.text for choice in bare.choices] == ["", ""]
    assert [choice.finish_reason for choice in bare.choices] == ["length", "length"]
    assert bare.choices[0].logprobs.tokens == []
    assert bare.usage.completion_tokens == 0
    echoed = served.complete(max_tokens=0, echo=True, n=2, best_of=3)
    assert [choice.text for choice in echoed.choices] == ["the quick"] * 2
    assert echoed.usage.completion_tokens == 0
    chunks = list(served.complete(max_tokens=0, echo=True, logprobs=1, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == "the quick"
    chat = served.client.chat.completions.create(
        model="m", messages=[{"role": "user", "content": "a"}], max_tokens=0
    )
    assert not chat.choices[0].message.content and chat.usage.completion_tokens == 0


def test_echo_repeats_what_truncation_left(served, tokenizer):
    ids = tokenizer.encode(PROMPT)
    for sent in (PROMPT, ids):
        answer = served.complete(
            prompt=sent,
            echo=True,
            max_tokens=0,
            logprobs=0,
            extra_body={"truncate_prompt_tokens": 5},
        )
        assert answer.choices[0].text == tokenizer.decode(ids[-5:])
        assert "".join(answer.choices[0].logprobs.tokens) == answer.choices[0].text
        assert answer.usage.prompt_tokens == 5


def test_prompt_logprobs(served, theirs, tokenizer):
    ids = tokenizer.encode(PROMPT)
    fields = {"prompt_logprobs": 2}
    made = served.complete(prompt=PROMPT, max_tokens=1, extra_body=fields).choices[0]
    found = made.prompt_logprobs
    assert found[0] is None and len(found) == len(ids)
    values = [entry[str(id)]["logprob"] for entry, id in zip(found[1:], ids[1:], strict=True)]
    assert sum(values) == pytest.approx(loglikelihood(theirs, ids, 1)[0], abs=1e-3)
    assert all(2 <= len(entry) <= 3 for entry in found[1:])
    chat = served.client.chat.completions.create(
        model="m", messages=[{"role": "user", "content": "a"}], max_tokens=1, extra_body=fields
    )
    assert len(chat.prompt_logprobs) == chat.usage.prompt_tokens
