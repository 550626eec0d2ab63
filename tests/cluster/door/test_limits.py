"""Every limit of the door: what is within is answered, what is beyond it is refused by its name.

Those of the queue, the body, the context and a slow reader are tested where they are made.
"""

import json
import socket

import httpx2 as httpx
import pytest
from shoal.cluster import wire
from shoal.cluster.connection import MAX_HEAD_BYTES
from shoal.cluster.conversation import MAX_MESSAGES
from shoal.cluster.prompts import MAX_PROMPTS
from shoal.cluster.settings import serve_config
from shoal.cluster.web import KEEP_ALIVE_S, web_config
from shoal.engine.bounds import (
    MAX_BAD_WORDS,
    MAX_N,
    MAX_PRIORITY,
    MAX_STOPS,
    MAX_WORD_LENGTH,
)


def post(door, path="/v1/completions", headers=None, **body):
    body = {"prompt": "a", "max_tokens": 1, **body}
    return httpx.post(door.url + path, json=body, headers=headers, timeout=60)


def messages(count):
    return [{"role": "user", "content": ""}] * count


BOUNDS = {
    "n": (MAX_N, MAX_N + 1, MAX_N),
    "best_of": (MAX_N, MAX_N + 1, MAX_N),
    "logprobs": (5, 6, 5),
    "prompt_logprobs": (5, 6, 5),
    "stop": (["a"] * MAX_STOPS, ["a"] * (MAX_STOPS + 1), MAX_STOPS),
    "stop ": ("a" * MAX_WORD_LENGTH, "a" * (MAX_WORD_LENGTH + 1), MAX_WORD_LENGTH),
    "bad_words": (["q"] * MAX_BAD_WORDS, ["q"] * (MAX_BAD_WORDS + 1), MAX_BAD_WORDS),
    "bad_words ": (["q" * MAX_WORD_LENGTH], ["q" * (MAX_WORD_LENGTH + 1)], MAX_WORD_LENGTH),
    "logit_bias": (dict.fromkeys(map(str, range(400)), 1), {"400": 1}, 399),
    "allowed_token_ids": (list(range(400)), [400], 399),
    "stop_token_ids": ([399], [400], 399),
    "prompt": (["a"] * MAX_PROMPTS, ["a"] * (MAX_PROMPTS + 1), MAX_PROMPTS),
    "cache_salt": ("a" * 1024, "a" * 1025, 1024),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_a_field_within_its_bound_and_beyond(door, name):
    within, beyond, bound = BOUNDS[name]
    field = name.strip()
    assert post(door, **{field: within}).status_code == 200
    refused = post(door, **{field: beyond})
    error = refused.json()["error"]
    assert (refused.status_code, error["param"]) == (400, field)
    assert str(bound) in error["message"]


def test_a_priority_within_its_bound_and_beyond(open_door):
    door = open_door(scheduling_policy="priority")
    for sign in (1, -1):
        assert post(door, priority=sign * MAX_PRIORITY).status_code == 200
        assert wire.frame(wire.submit_of(door.link.seen[-1]))
        refused = post(door, priority=sign * 1e19)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "priority")
        assert str(MAX_PRIORITY) in refused.json()["error"]["message"]


def test_a_top_k_above_the_vocabulary_is_all_of_it(door):
    assert post(door, top_k=1e30).status_code == 200
    assert door.link.seen[-1].params.top_k == door.link.card.vocab_size
    assert wire.frame(wire.submit_of(door.link.seen[-1]))


def test_a_token_id_of_very_many_digits(door):
    for key in ("9" * 5000, "0" * 5000 + "5"):
        refused = post(door, logit_bias={key: 1})
        error = refused.json()["error"]
        assert (refused.status_code, error["param"]) == (400, "logit_bias")
        assert "token ids" in error["message"] and len(error["message"]) < 200


def test_messages_and_their_parts(door):
    for body, param in (
        ({"messages": messages(MAX_MESSAGES + 1)}, "messages"),
        (
            {"messages": [{"role": "user", "content": ["a"] * (MAX_MESSAGES + 1)}]},
            "messages[0].content",
        ),
    ):
        refused = post(door, "/v1/chat/completions", **body)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)
        assert str(MAX_MESSAGES) in refused.json()["error"]["message"]
    within = post(door, "/tokenize", messages=messages(MAX_MESSAGES))
    assert within.status_code == 200


def test_a_head_that_is_too_long(door):
    assert post(door, headers={"x-long": "a" * (MAX_HEAD_BYTES - 2000)}).status_code == 200
    refused = post(door, headers={"x-long": "a" * MAX_HEAD_BYTES})
    assert refused.status_code == 431
    assert refused.json()["error"]["code"] == "headers_too_large"
    many = {f"x-{i}": "a" * 100 for i in range(MAX_HEAD_BYTES // 100)}
    assert post(door, headers=many).status_code == 431


def test_a_head_that_never_ends_is_not_kept(door):
    with socket.create_connection(("127.0.0.1", door.port), timeout=60) as endless:
        endless.sendall(b"GET / HTTP/1.1\r\nx: ")
        got = b""
        try:
            while not got:
                endless.sendall(b"a" * 4096)
                endless.settimeout(0.01)
                try:
                    got = endless.recv(4096)
                except TimeoutError:
                    continue
        except ConnectionError:
            return
    assert got.startswith(b"HTTP/1.1 431 ")
    assert json.loads(got.split(b"\r\n\r\n", 1)[1])["error"]["code"] == "headers_too_large"


def test_what_is_no_http_gets_an_error_object_too(door):
    with socket.create_connection(("127.0.0.1", door.port), timeout=60) as rude:
        rude.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        got = rude.recv(4096)
    assert got.startswith(b"HTTP/1.1 400 ")
    assert json.loads(got.split(b"\r\n\r\n", 1)[1])["error"]["code"] == "invalid_http"


def test_idle_connections_are_kept_longer_than_clients_keep_them():
    settings = web_config(serve_config({}, environ={}), None, lifespan="off")
    assert settings.timeout_keep_alive == KEEP_ALIVE_S == 75


def test_nesting(door):
    for depth, status in ((100, 200), (100_000, 400)):
        value = "[" * depth + "]" * depth
        body = f'{{"prompt": "a", "max_tokens": 1, "metadata": {value}}}'
        assert httpx.post(f"{door.url}/v1/completions", content=body).status_code == status
