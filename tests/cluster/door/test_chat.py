"""/v1/chat/completions through the real client."""

import asyncio

import openai
import pytest

HELLO = [{"role": "user", "content": "hello"}]


def chat(door, **fields):
    return door.client().chat.completions.create(
        **{"model": "scripted", "messages": HELLO, **fields}
    )


def test_a_conversation_is_rendered_and_answered(door, tokenizer):
    answer = chat(door)
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    message = answer.choices[0].message
    assert (message.role, message.content) == ("assistant", "hello world")
    assert message.tool_calls is None
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].logprobs is None
    rendered = "<|user|>hello<eos><|assistant|>"
    assert door.link.seen[0].prompt == tuple(tokenizer.encode(rendered, False))
    assert answer.usage.prompt_tokens == len(door.link.seen[0].prompt)


def test_an_answer_may_be_as_long_as_the_context(door):
    chat(door)
    sent = door.link.seen[0]
    assert sent.params.max_tokens == 256 - len(sent.prompt)
    chat(door, max_tokens=7)
    chat(door, max_completion_tokens=8, max_tokens=7)
    assert [r.params.max_tokens for r in door.link.seen[1:]] == [7, 8]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"n": 3},
        {"logprobs": True},
        {"logprobs": True, "top_logprobs": 2, "n": 2},
        {"stop": "wör"},
        {"max_tokens": 1},
        {"extra_body": {"echo": True, "continue_final_message": True}},
    ],
)
def test_the_stream_is_the_plain_answer_in_pieces(door, fields):
    door.link.reply = lambda request, sibling: f"héllo wörld 🐟 {sibling}"
    messages = [*HELLO, {"role": "assistant", "content": "well, "}]
    plain = chat(door, messages=messages, **fields)
    options = {"include_usage": True}
    chunks = list(chat(door, messages=messages, **fields, stream=True, stream_options=options))
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert chunks[-1].usage == plain.usage
    assert chunks[-1].choices == []
    for choice in plain.choices:
        mine = [c.choices[0] for c in chunks[:-1] if c.choices[0].index == choice.index]
        assert mine[0].delta.role == "assistant"
        assert all(piece.delta.role is None for piece in mine[1:])
        assert all(piece.delta.tool_calls is None for piece in mine)
        text = "".join(piece.delta.content or "" for piece in mine)
        assert text == choice.message.content
        assert "�" not in text
        reasons = [piece.finish_reason for piece in mine]
        assert reasons == [None] * (len(mine) - 1) + [choice.finish_reason]
        if choice.logprobs is not None:
            pieces = [entry for c in mine if c.logprobs for entry in c.logprobs.content]
            assert pieces == choice.logprobs.content


def test_siblings_come_side_by_side(door):
    chunks = list(chat(door, n=3, stream=True))
    order = [chunk.choices[0].index for chunk in chunks]
    assert order[:6] == [0, 1, 2, 0, 1, 2]


def test_logprobs_with_bytes(door, tokenizer):
    door.link.reply = lambda request, sibling: "é"
    content = chat(door, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    assert bytes(byte for entry in content[:-1] for byte in entry.bytes) == "é".encode()
    assert [len(entry.top_logprobs) for entry in content] == [2] * len(content)
    assert content[0].logprob == content[0].top_logprobs[1].logprob == -0.3
    assert content[0].top_logprobs[0].logprob == -0.1
    none = chat(door, logprobs=True).choices[0].logprobs.content
    assert none[0].top_logprobs == []


def test_text_in_parts(door, tokenizer):
    parts = [{"type": "text", "text": "hello"}, {"type": "text", "text": "world"}]
    chat(door, messages=[{"role": "user", "content": parts}])
    assert "hello\nworld<eos>" in tokenizer.decode(door.link.seen[0].prompt, False)


def test_developer_speaks_as_system_and_nulls_are_absent(door, tokenizer):
    messages = [
        {"role": "developer", "content": "be kind", "name": None},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "tool_calls": None, "refusal": None},
        {"role": "user", "content": "again"},
    ]
    chat(door, messages=messages)
    rendered = tokenizer.decode(door.link.seen[0].prompt, False)
    assert rendered.startswith("<|system|>be kind<eos><|user|>hi<eos><|assistant|><eos>")


def test_the_final_message_can_be_continued(door, tokenizer):
    messages = [*HELLO, {"role": "assistant", "content": "I think"}]
    chat(door, messages=messages, extra_body={"continue_final_message": True})
    assert tokenizer.decode(door.link.seen[0].prompt, False).endswith("<|assistant|>I think")
    chat(door, extra_body={"add_generation_prompt": False})
    assert tokenizer.decode(door.link.seen[1].prompt, False).endswith("hello<eos>")
    both = {"continue_final_message": True, "add_generation_prompt": True}
    with pytest.raises(openai.BadRequestError, match="add_generation_prompt"):
        chat(door, extra_body=both)


def test_what_changes_nothing_is_taken(door):
    answer = chat(
        door,
        tools=[],
        tool_choice="none",
        response_format={"type": "text"},
        parallel_tool_calls=True,
        user="me",
        store=False,
        metadata={"a": "b"},
        service_tier="auto",
        seed=1,
        modalities=["text"],
        reasoning_effort="low",
        extra_body={
            "best_of": 1,
            "structured_outputs": {},
            "guided_json": None,
            "chat_template_kwargs": {"enable_thinking": False},
            "mm_processor_kwargs": {"x": 1},
            "nobody_knows_this": 7,
        },
    )
    assert answer.choices[0].message.content == "hello world"


def test_nulls_stand_for_absent_fields(door):
    names = [
        *("frequency_penalty", "presence_penalty", "repetition_penalty", "logit_bias", "seed"),
        *("logprobs", "top_logprobs", "max_tokens", "max_completion_tokens", "min_tokens", "n"),
        *("response_format", "tools", "tool_choice", "user", "stop", "stop_token_ids", "echo"),
        *("stream", "stream_options", "temperature", "top_p", "top_k", "min_p", "ignore_eos"),
        *("bad_words", "allowed_token_ids", "skip_special_tokens", "truncate_prompt_tokens"),
        *("chat_template", "chat_template_kwargs", "documents", "add_generation_prompt"),
        *("priority", "best_of", "model"),
    ]
    answer = chat(door, extra_body=dict.fromkeys(names))
    assert answer.choices[0].message.content == "hello world"


@pytest.mark.parametrize(
    ("fields", "param", "word"),
    [
        ({"messages": []}, "messages", "at least one"),
        ({"messages": "hi"}, "messages", "list"),
        ({"messages": ["hi"]}, "messages[0]", "object"),
        ({"messages": [{"content": "hi"}]}, "messages[0].role", "role"),
        ({"messages": [{"role": "robot", "content": "hi"}]}, "messages[0].role", "robot"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "required"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "integer"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content[0]",
            "images are not built",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]},
            "messages[0].content[0]",
            "audio",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages[0].content[0].text",
            "string",
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": 3}]},
            "messages[0].tool_calls",
            "list",
        ),
        ({"tools": [{"type": "function"}]}, "tools", "not built"),
        ({"tool_choice": "required"}, "tool_choice", "not built"),
        ({"response_format": {"type": "json_object"}}, "response_format", "not built"),
        ({"functions": [{"name": "f"}]}, "functions", "not built"),
        ({"modalities": ["text", "audio"]}, "modalities", "not built"),
        ({"top_logprobs": 2}, "top_logprobs", "logprobs"),
        ({"logprobs": True, "top_logprobs": 6}, "top_logprobs", "5"),
        ({"logprobs": 2}, "logprobs", "true or false"),
        ({"max_completion_tokens": "many"}, "max_completion_tokens", "integer"),
        ({"extra_body": {"chat_template": "{{ x }}"}}, "chat_template", "--chat-template"),
        (
            {"extra_body": {"chat_template_kwargs": {"chat_template": "{{ x }}"}}},
            "chat_template_kwargs.chat_template",
            "cannot hold",
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_wrong_value_is_named_before_anything_begins(door, fields, param, word, stream):
    with pytest.raises(openai.BadRequestError) as caught:
        chat(door, stream=stream, **fields)
    error = caught.value.body
    assert error["param"] == param
    assert word in error["message"]
    assert not door.link.seen


def test_the_stream_helper_of_the_client_works(door):
    with door.client().chat.completions.stream(model="scripted", messages=HELLO) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    assert final.choices[0].message.content == "hello world"


def test_the_asynchronous_client_works(door):
    async def read():
        async with openai.AsyncOpenAI(base_url=f"{door.url}/v1", api_key="k") as client:
            stream = await client.chat.completions.create(
                model="scripted", messages=HELLO, stream=True
            )
            return [chunk.choices[0].delta.content or "" async for chunk in stream]

    assert "".join(asyncio.run(read())) == "hello world"
