"""/v1/completions through the real client."""

from dataclasses import replace

import openai
import pytest
from shoal.cluster.census import Census
from shoal.cluster.pool import Pool
from shoal.cluster.serving import Serving
from shoal.cluster.settings import serve_config
from shoal.engine.admission import Seeds

NAME = "scripted"


def complete(door, **fields):
    return door.client().completions.create(**{"model": "scripted", "prompt": "the fox", **fields})


def test_a_string_is_completed(door, tokenizer):
    answer = complete(door)
    assert answer.choices[0].text == "hello world"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.object == "text_completion"
    assert answer.model == "scripted"
    prompt = tokenizer.encode("the fox")
    written = len(tokenizer.encode("hello world")) + 1
    assert answer.usage.prompt_tokens == len(prompt)
    assert answer.usage.completion_tokens == written
    assert answer.usage.total_tokens == len(prompt) + written
    assert answer.usage.prompt_tokens_details.cached_tokens == 3
    sent = door.link.seen[0]
    assert sent.prompt == tuple(prompt)
    assert sent.params.max_tokens == 16


def test_every_form_of_prompt(door, tokenizer):
    door.link.reply = lambda request, sibling: f" {len(request.prompt)}"
    ids = tokenizer.encode("the lazy dog")
    lengths = [len(tokenizer.encode(text)) for text in ("the fox", "the lazy dog")]
    for prompt, expected in (
        ("the fox", lengths[:1]),
        (["the fox", "the lazy dog"], lengths),
        (ids, lengths[1:]),
        ([ids, tokenizer.encode("the fox"), ids], [lengths[1], lengths[0], lengths[1]]),
    ):
        answer = complete(door, prompt=prompt)
        assert [choice.index for choice in answer.choices] == list(range(len(expected)))
        assert [choice.text for choice in answer.choices] == [f" {n}" for n in expected]
        assert answer.usage.prompt_tokens == sum(expected)


def test_several_answers_to_several_prompts_are_numbered_through(door):
    door.link.reply = lambda request, sibling: f"{len(request.prompt)}-{sibling}"
    answer = complete(door, prompt=["a", "the fox"], n=2)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert [choice.text[-2:] for choice in answer.choices] == ["-0", "-1", "-0", "-1"]
    assert len(door.link.seen) == 2


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"n": 3},
        {"prompt": ["a", "b c"], "n": 2},
        {"echo": True},
        {"stop": ["wor"]},
        {"logprobs": 2},
        {"logprobs": 0, "echo": True},
        {"max_tokens": 1},
    ],
)
def test_the_stream_is_the_plain_answer_in_pieces(door, fields):
    door.link.reply = lambda request, sibling: f"héllo wörld 🐟 {sibling}"
    plain = complete(door, **fields)
    chunks = list(complete(door, **fields, stream=True, stream_options={"include_usage": True}))
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    assert chunks[-1].usage == plain.usage
    assert chunks[-1].choices == []
    assert all(chunk.usage is None for chunk in chunks[:-1])
    for choice in plain.choices:
        mine = [c.choices[0] for c in chunks[:-1] if c.choices[0].index == choice.index]
        assert "".join(piece.text for piece in mine) == choice.text
        assert all("�" not in piece.text for piece in mine)
        reasons = [piece.finish_reason for piece in mine]
        assert reasons == [None] * (len(mine) - 1) + [choice.finish_reason]
        if choice.logprobs is not None:
            for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
                pieces = [entry for c in mine for entry in getattr(c.logprobs, name)]
                assert pieces == getattr(choice.logprobs, name)


def test_usage_comes_only_when_asked_for(door):
    assert all(chunk.usage is None for chunk in complete(door, stream=True))
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = list(complete(door, stream=True, stream_options=options))
    counts = [chunk.usage.completion_tokens for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[0] == 1
    assert counts[-1] == counts[-2]


def test_a_stop_string_never_shows_its_beginning_and_frees_the_sibling(door):
    door.link.reply = lambda request, sibling: "the quick brown" if sibling else "the quack brown"
    chunks = list(complete(door, n=2, stop=[" quick", "never"], max_tokens=50, stream=True))
    texts = {0: "", 1: ""}
    ends = {}
    for chunk in chunks:
        choice = chunk.choices[0]
        texts[choice.index] += choice.text
        if choice.finish_reason:
            ends[choice.index] = choice
    assert texts == {0: "the quack brown", 1: "the"}
    assert ends[1].finish_reason == "stop"
    assert ends[1].stop_reason == " quick"
    assert ends[0].stop_reason is None
    assert [sibling for _, sibling in door.link.aborted] == [1]


def test_tokens_behind_a_stop_string_are_not_counted(door, tokenizer):
    door.link.reply = lambda request, sibling: "hello world again and again"
    answer = complete(door, stop="world", max_tokens=50, logprobs=1)
    assert answer.choices[0].text == "hello "
    used = answer.usage.completion_tokens
    assert used == len(answer.choices[0].logprobs.tokens)
    ids = tokenizer.encode("hello world again and again")
    assert "world" in tokenizer.decode(ids[:used])
    assert "world" not in tokenizer.decode(ids[: used - 1])


def test_echo_with_logprobs_has_what_evaluations_read(door, tokenizer):
    ids = tokenizer.encode("the quick fox")
    answer = complete(
        door, prompt=[ids], echo=True, max_tokens=1, logprobs=1, seed=1234, temperature=0
    )
    logprobs = answer.choices[0].logprobs
    assert len(logprobs.token_logprobs) == len(ids) + 1
    assert logprobs.token_logprobs[0] is None
    assert logprobs.top_logprobs[0] is None
    assert all(value <= 0 for value in logprobs.token_logprobs[1:])
    assert "".join(logprobs.tokens[: len(ids)]) == "the quick fox"
    text = answer.choices[0].text
    assert text.startswith("the quick fox")
    for token, offset in zip(logprobs.tokens, logprobs.text_offset, strict=True):
        assert text[offset : offset + len(token)] == token
    for token, value, top in zip(
        logprobs.tokens[1:], logprobs.token_logprobs[1:], logprobs.top_logprobs[1:], strict=True
    ):
        assert top[token] == value


def test_the_end_of_sequence_is_listed_too(door):
    door.link.reply = lambda request, sibling: ""
    answer = complete(door, echo=True, max_tokens=1, logprobs=1)
    assert answer.choices[0].logprobs.tokens[-1] == "<eos>"
    assert answer.choices[0].text == "the fox"


def test_minus_infinity_becomes_a_number(door):
    answer = complete(door, logprobs=5, max_tokens=1)
    assert -9999.0 in answer.choices[0].logprobs.top_logprobs[0].values()


def test_parts_of_a_character_keep_names_of_their_own(door, tokenizer):
    door.link.reply = lambda request, sibling: "🐟"
    answer = complete(door, logprobs=0, max_tokens=50)
    tokens = answer.choices[0].logprobs.tokens
    assert answer.choices[0].text == "🐟"
    assert tokens[0] == "bytes:\\xf0"
    assert len(set(tokens)) == len(set("🐟".encode())) + 1


def test_echo_without_output(door):
    answer = complete(door, echo=True, max_tokens=0)
    assert answer.choices[0].text == "the fox"
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 0
    chunks = list(complete(door, echo=True, max_tokens=0, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == "the fox"


def test_prompt_logprobs_in_the_form_of_vllm(door, tokenizer):
    answer = complete(door, extra_body={"prompt_logprobs": 1})
    first, second, *_ = answer.choices[0].prompt_logprobs
    ids = tokenizer.encode("the fox")
    assert first is None
    entry = second[str(ids[1])]
    assert entry == {"logprob": -0.3, "rank": 2, "decoded_token": tokenizer.token_text(ids[1])}
    assert min(e["rank"] for e in second.values()) == 1


def test_token_ids_come_on_request(door, tokenizer):
    ids = tokenizer.encode("the fox")
    answer = complete(door, extra_body={"return_token_ids": True})
    assert answer.choices[0].prompt_token_ids == ids
    assert answer.choices[0].token_ids == [*tokenizer.encode("hello world"), 1]
    chunks = list(complete(door, stream=True, extra_body={"return_token_ids": True}))
    assert chunks[0].choices[0].prompt_token_ids == ids
    pieces = [token for chunk in chunks for token in chunk.choices[0].token_ids]
    assert pieces == answer.choices[0].token_ids
    named = complete(door, logprobs=1, extra_body={"return_tokens_as_token_ids": True})
    assert named.choices[0].logprobs.tokens[-1] == "token_id:1"


def test_sampling_fields_reach_the_engine(door, tokenizer):
    complete(
        door,
        temperature=0.5,
        top_p=0.9,
        presence_penalty=0.25,
        frequency_penalty=-0.25,
        seed=-(2**80),
        logit_bias={"5": 1.5, "6": -200},
        stop=["a", "b"],
        max_tokens=9,
        extra_body={
            "top_k": 7,
            "min_p": 0.1,
            "repetition_penalty": 1.1,
            "min_tokens": 2,
            "stop_token_ids": [9],
            "bad_words": ["fox"],
            "allowed_token_ids": [3, 4],
            "ignore_eos": False,
            "skip_special_tokens": False,
            "include_stop_str_in_output": True,
            "cache_salt": "pepper",
            "truncate_prompt_tokens": 2,
        },
    )
    sent = door.link.seen[0]
    params = sent.params
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0.5, 0.9, 7, 0.1)
    assert (params.presence_penalty, params.frequency_penalty) == (0.25, -0.25)
    assert (params.repetition_penalty, params.min_tokens, params.max_tokens) == (1.1, 2, 9)
    assert params.seed == -(2**80)
    assert params.logit_bias == {5: 1.5, 6: -100.0}
    assert params.stops == ("a", "b")
    assert params.stop_token_ids == (9,)
    assert params.allowed_token_ids == (3, 4)
    assert tuple(tokenizer.encode(" fox", False)) in params.bad_words_ids
    assert tuple(tokenizer.encode("fox", False)) in params.bad_words_ids
    assert not params.skip_special_tokens
    assert params.include_stop_str_in_output
    assert sent.cache_salt == "pepper"
    assert sent.prompt == tuple(tokenizer.encode("the fox")[-2:])


def test_the_model_s_defaults_stand_where_the_caller_says_nothing(door):
    complete(door)
    complete(door, temperature=0)
    assert (door.link.seen[0].params.temperature, door.link.seen[0].params.top_k) == (0.6, 20)
    assert (door.link.seen[1].params.temperature, door.link.seen[1].params.top_k) == (0.0, 20)


def test_every_request_has_a_seed(door):
    for _ in range(3):
        complete(door, prompt=["a", "b"])
    seeds = [request.params.seed for request in door.link.seen]
    assert None not in seeds
    assert len(set(seeds)) == len(seeds)


def test_each_of_several_gateways_draws_seeds_of_its_own(door):
    def drawn(gateways, rank, start):
        keys = {"model": door.link.card.model, "served_model_name": NAME, "gateways": gateways}
        serving = Serving(
            serve_config(keys, environ={}),
            door.router,
            Pool(door.router, start),
            Census(door.router, start),
            rank,
        )
        try:
            return [serving.draw_seed(replace(door.link.card, names=(NAME,))) for _ in range(4)]
        finally:
            serving.close()

    assert drawn(1, 0, "a") == drawn(1, 0, "b")
    assert drawn(1, 0, "a")[0] == Seeds(0).draw()
    assert drawn(2, 0, "a") == drawn(2, 0, "b"), "and the same ones after another start"
    assert not {*drawn(2, 0, "a")} & {*drawn(2, 1, "a"), *drawn(1, 0, "a")}


@pytest.mark.parametrize(
    ("fields", "param", "word"),
    [
        ({"temperature": -1}, "temperature", "-1"),
        ({"temperature": "hot"}, "temperature", "a string"),
        ({"max_tokens": -1}, "max_tokens", "-1"),
        ({"max_tokens": "5"}, "max_tokens", "integer"),
        ({"n": 0}, "n", "0"),
        ({"n": 1000}, "n", "128"),
        ({"top_p": 1.5}, "top_p", "1.5"),
        ({"logprobs": 6}, "logprobs", "5"),
        ({"logprobs": -1}, "logprobs", "-1"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "x"),
        ({"logit_bias": {"4000": 1}}, "logit_bias", "4000"),
        ({"logit_bias": {"4": "much"}}, "logit_bias.4", "number"),
        ({"stop": 5}, "stop", "string"),
        ({"stop": [""]}, "stop", "empty"),
        ({"prompt": []}, "prompt", "empty"),
        ({"prompt": ""}, "prompt", "empty"),
        ({"prompt": [1, "a", 2.5]}, "prompt", "prompt[0]"),
        ({"prompt": [399, 400]}, "prompt", "400"),
        ({"prompt": [[-1]]}, "prompt[0]", "-1"),
        ({"prompt": {"text": "a"}}, "prompt", "object"),
        ({"suffix": "end"}, "suffix", "not built"),
        ({"n": 2, "best_of": 1}, "best_of", "n (2)"),
        ({"best_of": 1000}, "best_of", "best_of"),
        ({"stream": "yes"}, "stream", "true or false"),
        ({"stream": True, "stream_options": {"include_usage": 3}}, "stream_options", "true"),
        ({"extra_body": {"min_tokens": 20}}, "min_tokens", "max_tokens"),
        ({"extra_body": {"use_beam_search": 1}}, "use_beam_search", "true or false"),
        ({"extra_body": {"early_stopping": "soon"}}, "early_stopping", "never"),
        ({"extra_body": {"length_penalty": 2}}, "length_penalty", "use_beam_search"),
        ({"extra_body": {"guided_json": {"type": "object"}}}, "guided_json", "not built"),
        ({"extra_body": {"structured_outputs": {"regex": "a"}}}, "structured_outputs", "not built"),
        ({"extra_body": {"prompt_embeds": "AAAA"}}, "prompt_embeds", "not built"),
        ({"extra_body": {"priority": 3}}, "priority", "policy"),
        ({"extra_body": {"truncate_prompt_tokens": 0}}, "truncate_prompt_tokens", "0"),
        ({"extra_body": {"allowed_token_ids": [400]}}, "allowed_token_ids", "400"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_wrong_value_is_named_before_anything_begins(door, fields, param, word, stream):
    with pytest.raises(openai.BadRequestError) as caught:
        complete(door, **{"stream": stream or openai.omit, **fields})
    error = caught.value.body
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"].startswith(param)
    assert word in error["message"]
    assert error["type"] == "invalid_request_error"
    assert not door.link.seen


def test_a_prompt_too_long_is_told_in_the_words_clients_look_for(door, tokenizer):
    prompt = "fox " * 300
    count = len(tokenizer.encode(prompt))
    with pytest.raises(openai.BadRequestError) as caught:
        complete(door, prompt=prompt)
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.body["message"] == (
        f"This model's maximum context length is 256 tokens. However, your prompt contains {count} "
        "input tokens, which exceeds this limit even without any output tokens. Please reduce the "
        "length of the input prompt."
    )
    with pytest.raises(openai.BadRequestError) as caught:
        complete(door, prompt=[5] * 100, max_tokens=200)
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.body["message"] == (
        "This model's maximum context length is 256 tokens. However, you requested 200 output "
        "tokens and your prompt contains 100 input tokens, for a total of 300 tokens. Please "
        "reduce the length of the input prompt or the number of requested output tokens."
    )


def test_a_default_of_max_tokens_is_cut_to_what_fits(door):
    complete(door, prompt=[5] * 250)
    assert door.link.seen[0].params.max_tokens == 6


def test_stream_options_need_a_stream(door):
    with pytest.raises(openai.BadRequestError, match="stream=True"):
        complete(door, stream_options={"include_usage": True})
