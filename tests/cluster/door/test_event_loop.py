"""What takes long is done beside the gateway's event loop, and once a request."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2 as httpx
import pytest
from shoal.cluster import answer as answers
from shoal.cluster import serving
from shoal.cluster.formats import CompletionFormat
from shoal.cluster.logprobs import TokenNames
from shoal.cluster.off_loop import LONG
from shoal.cluster.sampling import MAX_SENT
from shoal.cluster.state import new_state
from shoal.engine.request import Request, SamplingParams
from shoal.engine.text import Tokenizer


@pytest.fixture
def noted(monkeypatch):
    """Has a function note whether it was called on the event loop of a door, call by call."""

    def note(door, of, name):
        loop, plain, calls = door.call(threading.get_ident), getattr(of, name), []

        def noting(*args, **keys):
            calls.append(threading.get_ident() == loop)
            return plain(*args, **keys)

        monkeypatch.setattr(of, name, noting)
        return calls

    return note


@pytest.fixture
def door(door):
    """A door whose engine tokenizes nothing."""
    door.link.reply = lambda request, sibling: (5,)
    return door


@pytest.fixture
def roomy(door):
    """A door to a model of long contexts."""
    door.link.card = dataclasses.replace(door.link.card, max_model_len=1 << 20)
    return door


def post(door, path="/v1/completions", **body):
    return httpx.post(door.url + path, json={"max_tokens": 2, **body}, timeout=60)


def until(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


@pytest.fixture
def late(roomy, monkeypatch):
    """Asks for a stream whose first chunk takes until the engine has said all; the events."""
    begun, go = threading.Event(), threading.Event()
    plain = CompletionFormat.chunk

    def chunk(self, *of):
        if not begun.is_set():
            begun.set()
            assert go.wait(60)
        return plain(self, *of)

    monkeypatch.setattr(CompletionFormat, "chunk", chunk)
    body = {"prompt": "the quick brown fox " * 400, "echo": True, "logprobs": 4, "stream": True}

    def ask(**more):
        with ThreadPoolExecutor(1) as pool:
            try:
                answer = pool.submit(post, roomy, **{"max_tokens": 100, **body, **more})
                until(lambda: answer.done() or (begun.is_set() and not roomy.link.live))
            finally:
                go.set()
        assert answer.result().status_code == 200, answer.result().text
        *events, done = answer.result().text.strip().split("\n\n")
        assert done == "data: [DONE]"
        return [json.loads(event.removeprefix("data: ")) for event in events]

    return ask


def test_chunks_that_are_written_late_tell_the_usage_of_their_time(roomy, late):
    roomy.link.reply = lambda request, sibling: "and so on"
    options = {"include_usage": True, "continuous_usage_stats": True}
    *chunks, last = late(stream_options=options)
    so_far = -last["usage"]["prompt_tokens"]
    assert len(chunks) > 2
    for chunk in chunks:
        so_far += len(chunk["choices"][0]["logprobs"]["tokens"])
        assert chunk["usage"]["completion_tokens"] == so_far
    assert last["usage"]["completion_tokens"] == so_far


def test_what_came_before_an_error_is_told_before_it(roomy, late, tokenizer):
    roomy.link.reply = lambda request, sibling: "and so on"
    roomy.link.fail_after = 3
    *chunks, error = late(prompt="the fox " * 800)
    assert "row went bad" in error["error"]["message"]
    said = "".join(chunk["choices"][0]["text"] for chunk in chunks).removeprefix("the fox " * 800)
    assert said == tokenizer.decode(tokenizer.encode("and so on", False)[:3])


def test_a_stream_of_more_log_probabilities_than_can_be_written_fails(roomy, late, monkeypatch):
    monkeypatch.setattr(answers, "MAX_WAITING_NAMES", 12)
    roomy.link.reply = lambda request, sibling: (5,) * 99
    *chunks, error = late()
    assert error["error"]["code"] == "rate_limit_exceeded"
    assert "15 log probabilities" in error["error"]["message"]
    assert [len(chunk["choices"][0]["logprobs"]["tokens"]) for chunk in chunks[1:]] == [1, 1, 1]
    assert [sibling for _, sibling in roomy.link.aborted] == [None]


def test_prompts_that_are_long_together_are_tokenized_beside_it(roomy, noted):
    calls = noted(roomy, Tokenizer, "encode")
    assert post(roomy, prompt="short").status_code == 200
    assert post(roomy, prompt=["a" * (LONG // 2)] * 2).status_code == 200
    assert calls == [True, False, False]


def test_the_loop_goes_on_while_a_long_prompt_is_tokenized(roomy, monkeypatch):
    """Thousands of turns; what held the interpreter until it is done would leave it one or two."""
    turns, meanwhile, plain = [0], [], Tokenizer.encode

    def turn():
        turns[0] += 1
        if not meanwhile:
            roomy.loop.call_soon(turn)

    def encode(self, *args, **keys):
        roomy.loop.call_soon_threadsafe(turn)
        before = turns[0]
        ids = plain(self, *args, **keys)
        meanwhile.append(turns[0] - before)
        return ids

    monkeypatch.setattr(Tokenizer, "encode", encode)
    assert post(roomy, prompt="the quick brown fox " * 50_000).status_code == 200
    assert meanwhile[0] > 10


def test_a_long_conversation_is_not_tokenized_where_all_are_rendered(roomy, monkeypatch):
    threads, plain = [], Tokenizer.encode

    def encode(self, *args, **keys):
        threads.append(threading.current_thread().name)
        return plain(self, *args, **keys)

    monkeypatch.setattr(Tokenizer, "encode", encode)
    messages = [{"role": "user", "content": "a" * LONG}]
    assert post(roomy, "/v1/chat/completions", messages=messages).status_code == 200
    assert threads and not any(name.startswith("shoal-template") for name in threads)


def test_bad_words_are_tokenized_once_a_request(door, noted):
    calls = noted(door, Tokenizer, "encode")
    words = [f"{i:01000d}" for i in range(8)]
    assert post(door, prompt=[[5], [6], [7]], bad_words=words).status_code == 200
    assert calls == [False] * 2 * len(words)


def test_prompts_share_their_lists_and_have_seeds_of_their_own(door):
    allowed = [9, 5, 9, 5, 7] * 50
    answer = post(door, prompt=[[5], [6], [7]], allowed_token_ids=allowed, stop_token_ids=[3, 3])
    assert answer.status_code == 200
    first, *others = [request.params for request in door.link.seen]
    assert first.allowed_token_ids == (9, 5, 7) and first.stop_token_ids == (3,)
    assert all(other.allowed_token_ids is first.allowed_token_ids for other in others)
    assert len({params.seed for params in (first, *others)}) == 3


def test_seed_and_room_are_those_of_each_prompt(door):
    long = [5] * (door.link.card.max_model_len - 4)
    body = {"prompt": [[5], long], "seed": 7}
    assert httpx.post(f"{door.url}/v1/completions", json=body, timeout=60).status_code == 200
    assert [(r.params.seed, r.params.max_tokens) for r in door.link.seen] == [(7, 16), (7, 4)]
    refused = httpx.post(f"{door.url}/v1/completions", json=body | {"min_tokens": 5}, timeout=60)
    assert refused.json()["error"]["param"] == "min_tokens"


def test_what_goes_on_elsewhere_shares_its_lists(card):
    params = SamplingParams(n=2, seed=1, allowed_token_ids=range(100), prompt_logprobs=1)
    state = new_state(Request(id="r", prompt=(5,), params=params), card.names[0])
    told = [state.remainder(choice).params for choice in state.choices]
    assert [(each.n, each.prompt_logprobs) for each in told] == [(1, 1), (1, None)]
    assert all(each.allowed_token_ids is params.allowed_token_ids for each in told)
    assert (params.n, params.prompt_logprobs) == (2, 1)


def test_lists_that_are_long_times_the_prompts_are_refused(door):
    words = [f"{i:040d}" for i in range(1024)]
    assert post(door, prompt=[[5]] * 4, bad_words=words).status_code == 200
    refused = post(door, prompt=[[5]] * 1024, bad_words=words)
    error = refused.json()["error"]
    assert (refused.status_code, error["param"]) == (400, "prompt")
    assert str(MAX_SENT) in error["message"]


def test_a_long_body_is_read_beside_it(door, noted):
    calls = noted(door, serving, "parse")
    assert post(door, prompt="a", user="").status_code == 200
    assert post(door, prompt="a", user="a" * 2**20).status_code == 200
    assert calls == [True, False]


def test_long_bodies_are_read_one_at_a_time(door, monkeypatch):
    both, met, plain = threading.Barrier(2), [], serving.parse

    def parse(*of):
        with contextlib.suppress(threading.BrokenBarrierError):
            met.append(both.wait(0.5))
        return plain(*of)

    monkeypatch.setattr(serving, "parse", parse)
    body = {"prompt": "a", "user": "a" * 2**20}
    with ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(post, door, **body) for _ in range(2)]
    assert [answer.result().status_code for answer in answers] == [200, 200]
    assert not met


def test_token_strings_of_a_long_text_are_made_beside_it(door, noted):
    calls = noted(door, Tokenizer, "token_text")
    for size in (1, LONG):
        body = {"prompt": "~" * size, "return_token_strs": True}
        told = httpx.post(f"{door.url}/tokenize", json=body, timeout=60).json()
        assert "".join(told["token_strs"]) == "~" * size
    assert calls[0] is True and len(calls) > LONG and not any(calls[1:])


def test_requests_that_are_long_together_are_logged_beside_it(open_door, noted, card):
    door = open_door(log_requests=True)
    decodes = noted(door, Tokenizer, "decode")
    assert post(door, prompt=[[5]]).status_code == 200
    assert post(door, prompt=[[5] * 128] * (LONG // 128)).status_code == 200
    assert decodes == [True] + [False] * (LONG // 128)


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_of_a_long_prompt_are_named_beside_it(roomy, noted, stream):
    roomy.link.reply = lambda request, sibling: "and so on"
    calls = noted(roomy, TokenNames, "legacy")
    prompt = "the quick brown fox " * 400
    body = {"prompt": prompt, "echo": True, "logprobs": 5, "max_tokens": 100, "stream": stream}
    answer = post(roomy, **body)
    assert answer.status_code == 200, answer.text
    chunks = [answer.text]
    if stream:
        *chunks, done = answer.text.strip().split("\n\n")
        assert done == "data: [DONE]"
    choices = [json.loads(chunk.removeprefix("data: "))["choices"][0] for chunk in chunks]
    assert "".join(choice["text"] for choice in choices) == f"{prompt}and so on"
    assert choices[-1]["finish_reason"] == "stop"
    assert len(choices[0]["logprobs"]["tokens"]) > 1000
    assert not any(calls[: len(choices[0]["logprobs"]["tokens"])])


def test_prompt_logprobs_of_prompts_that_are_long_together_are_named_beside_it(door, noted):
    calls = noted(door, TokenNames, "chat")
    assert post(door, prompt=[[5] * 100], prompt_logprobs=1).status_code == 200
    assert all(calls)
    calls.clear()
    assert post(door, prompt=[[5] * 200] * 12, prompt_logprobs=1).status_code == 200
    assert calls and not any(calls)


def test_what_cannot_be_written_is_an_error_and_no_silence(door, monkeypatch):
    def broken(self, ends):
        raise RuntimeError("no words for it")

    monkeypatch.setattr(CompletionFormat, "whole", broken)
    answer = post(door, prompt=[[5] * 200] * 12, prompt_logprobs=1)
    assert answer.status_code == 500
    assert "no words" not in answer.text
