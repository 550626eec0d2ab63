"""What real clients send and read, client by client, where strict servers break them.

Those that can be run are run in tests/cluster/clients; these hold what they need at every change.
"""

import httpx2 as httpx
import pytest

HELLO = [{"role": "user", "content": "hello"}]
STREAM = {"stream": True, "stream_options": {"include_usage": True}}
BOTH = {"include_usage": True, "continuous_usage_stats": True}

CHATS = {
    "guidellm": {**STREAM, "stream_options": BOTH, "ignore_eos": True, "stop": None}
    | {"max_tokens": 4, "max_completion_tokens": 4},
    "LibreChat": {
        "messages": [{"role": "user", "content": "hello", "name": "somebody"}],
        "user": "6650f1",
        "presence_penalty": 0,
        "frequency_penalty": 0,
        "top_p": 1,
        "stream": True,
    },
    "pydantic-ai": {**STREAM, "max_completion_tokens": 8, "tools": [], "n": 1},
    "aiperf": {**STREAM, "min_tokens": 2, "max_completion_tokens": 2, "ignore_eos": True},
    "vllm bench": {**STREAM, "repetition_penalty": 1.0, "ignore_eos": True, "max_tokens": 3}
    | {"store": False, "temperature": 0.0},
    "lm-eval": {"stop": ["a", "b", "c", "d"], "seed": 1234, "temperature": 0, "max_tokens": 8},
    "open-webui": {"stream": True, "chat_id": "x", "session_id": "y", "background_tasks": {}},
    "agents": {"client_metadata": {"a": 1}, "context_management": {}, "output_config": {}},
}


@pytest.mark.parametrize("client", CHATS)
def test_what_a_client_sends_is_taken(door, client):
    body = {"messages": HELLO, **CHATS[client]}
    answer = httpx.post(f"{door.url}/v1/chat/completions", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    if body.get("stream"):
        assert answer.text.endswith("data: [DONE]\n\n")
        assert ('"usage"' in answer.text) is ("stream_options" in body)


def test_a_key_may_come_twice_and_a_head_request_first(open_door):
    """Continue sends the key in both headers; Claude Code asks HEAD / before anything."""
    door = open_door(api_key=("k",))
    headers = {"authorization": "Bearer k", "x-api-key": "k", "anthropic-beta": "x"}
    assert httpx.head(door.url, headers=headers).status_code == 200
    assert httpx.get(f"{door.url}/v1/models", headers=headers).status_code == 200


def test_an_answer_has_no_field_that_clients_stumble_on(door):
    """langchain: no `error` in a 200. pydantic-ai: no tool_calls of another type."""
    body = {"messages": HELLO}
    whole = httpx.post(f"{door.url}/v1/chat/completions", json=body).json()
    assert "error" not in whole
    assert whole["choices"]
    assert whole["choices"][0]["message"].get("tool_calls", []) == []
    assert isinstance(whole["created"], int)


def test_lm_eval_finds_one_token_behind_the_prompt_also_when_it_is_the_end(door, tokenizer):
    """It reads `token_logprobs[context:-1]`, and compares with the greatest of `top_logprobs`."""
    door.link.reply = lambda request, sibling: ()
    prompts = [tokenizer.encode(text) for text in ("the fox", "hello world again", "a")]
    body = {"prompt": prompts, "echo": True, "max_tokens": 1, "logprobs": 2, "seed": 1234}
    answer = httpx.post(f"{door.url}/v1/completions", json={**body, "temperature": 0}).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    for prompt, choice in zip(prompts, answer["choices"], strict=True):
        told = choice["logprobs"]
        assert len(told["tokens"]) == len(told["token_logprobs"]) == len(prompt) + 1
        assert told["token_logprobs"][0] is None
        assert told["top_logprobs"][0] is None
        assert choice["finish_reason"] == "stop"
        for token, value, top in list(
            zip(told["tokens"], told["token_logprobs"], told["top_logprobs"], strict=True)
        )[1:]:
            assert top[token] == value


def test_a_refusal_is_never_retried_and_never_a_stream(door):
    """Clients retry 408, 409, 429 and 5xx: no fault of a caller may have one of these."""
    wrong = (
        {"messages": "x"},
        {"messages": [{"role": "user"}]},
        {"messages": HELLO, "tools": [{}]},
        {"messages": HELLO, "temperature": "hot"},
        {"messages": HELLO, "max_tokens": 10_000},
        {"messages": HELLO, "model": "nobody"},
    )
    for body in wrong:
        for stream in (False, True):
            answer = httpx.post(f"{door.url}/v1/chat/completions", json={**body, "stream": stream})
            assert answer.status_code in (400, 404)
            assert answer.headers["content-type"] == "application/json"
            assert answer.json()["error"]["message"]
