"""What happens to a stream when its client, its engine or its server does not do what it should."""

import asyncio
import http.client
import json
import socket
import threading
import time

import httpx2 as httpx
import openai
import pytest
from shoal.cluster import sender
from shoal.cluster.link import LinkLost
from shoal.engine.errors import Overloaded

MESSAGES = [{"role": "user", "content": "hello"}]
LONG = {"messages": MESSAGES, "max_tokens": 200, "ignore_eos": True}


def until(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


def send(door, body):
    """A request over a socket of our own, which is returned as it is."""
    connection = http.client.HTTPConnection("127.0.0.1", door.port, timeout=60)
    connection.request("POST", "/v1/chat/completions", json.dumps(body))
    return connection


def events(text):
    return [line.removeprefix("data: ") for line in text.split("\n\n") if line]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("n", [1, 3])
def test_a_client_that_goes_away_frees_what_it_holds(door, stream, n):
    door.link.paused = True
    connection = send(door, {**LONG, "stream": stream, "n": n})
    until(lambda: len(door.link.live) == n)
    connection.close()
    until(lambda: not door.link.live)
    assert door.link.aborted == [(door.link.seen[0].id, None)]


def test_a_client_that_goes_away_in_the_middle_frees_what_it_holds(door):
    stream = door.client().chat.completions.create(
        model="scripted", messages=MESSAGES, max_tokens=200, stream=True, extra_body=LONG
    )
    for _ in zip(range(3), stream, strict=False):
        pass
    door.call(lambda: setattr(door.link, "paused", True))
    assert door.link.live
    stream.close()
    until(lambda: not door.link.live)


def test_one_of_several_prompts_that_is_refused_takes_the_others_with_it(door):
    submit = door.link.submit

    def second_is_refused(request, on_update):
        if door.link.seen:
            asyncio.get_running_loop().call_soon(on_update, Overloaded("gone"))
        else:
            submit(request, on_update)

    door.link.submit = second_is_refused
    with pytest.raises(openai.RateLimitError, match="gone"):
        door.client().completions.create(model="scripted", prompt=["a", "b"])
    assert not door.link.live


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_a_stream_that_fails_says_so_and_ends(door, path):
    door.link.fail_after = 2
    body = {"messages": MESSAGES, "prompt": "hello", "stream": True}
    answer = httpx.post(door.url + path, json=body)
    assert answer.status_code == 200
    *_, error, done = events(answer.text)
    assert done == "[DONE]"
    told = json.loads(error)["error"]
    assert set(told) == {"message", "type", "param", "code"}
    assert "row went bad" in told["message"]
    assert '"finish_reason":"' not in answer.text
    with pytest.raises(openai.APIError, match="row went bad"):
        list(door.client().completions.create(model="scripted", prompt="hello", stream=True))


def test_a_plain_answer_that_fails_is_a_status(door):
    door.link.fail_after = 2
    answer = httpx.post(door.url + "/v1/completions", json={"prompt": "hello", "n": 2})
    assert answer.status_code == 500
    assert "row went bad" in answer.json()["error"]["message"]


def test_an_engine_that_dies_and_is_not_replaced_is_told(open_door):
    door = open_door(failover_timeout=0)
    door.link.paused = True
    answers = []
    body = {**LONG, "stream": True}

    def read():
        answers.append(httpx.post(door.url + "/v1/chat/completions", json=body, timeout=60))

    reader = threading.Thread(target=read)
    reader.start()
    until(lambda: door.link.live)

    def one_step_then_death():
        door.link.paused = False
        door.link._step()
        door.link.paused = True
        door.router.links_ = []
        for _, on_update, _, _ in list(door.link.live.values()):
            on_update(LinkLost("the engine died", died=True))

    door.call(one_step_then_death)
    reader.join(60)
    *_, error, done = events(answers[0].text)
    assert json.loads(error)["error"]["code"] == "engine_unavailable"
    assert done == "[DONE]"


def test_a_slow_reader_is_given_up_and_nobody_else_suffers(door, monkeypatch):
    monkeypatch.setattr(sender.Sender.__init__, "__defaults__", (20_000,))
    door.link.reply = lambda request, sibling: "x" * 5000
    slow = socket.socket()
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    slow.connect(("127.0.0.1", door.port))
    body = json.dumps({"prompt": [5], "n": 100, "max_tokens": 250, "stream": True, "logprobs": 5})
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
    slow.sendall(head.encode() + body.encode())
    until(lambda: door.link.seen)
    answer = httpx.post(door.url + "/v1/completions", json={"prompt": "a", "max_tokens": 5})
    assert answer.status_code == 200
    until(lambda: any(sibling is None for _, sibling in door.link.aborted), 60)
    until(lambda: not door.link.live)
    while slow.recv(1 << 16):
        pass
    slow.close()


def test_a_slow_reader_gets_everything_as_long_as_it_fits(door):
    connection = send(door, {**LONG, "stream": True, "n": 20})
    until(lambda: door.link.seen)
    until(lambda: not door.link.live)
    text = connection.getresponse().read().decode()
    connection.close()
    assert events(text)[-1] == "[DONE]"
    assert sum('"finish_reason":"length"' in event for event in events(text)) == 20


def test_many_streams_at_once(door, tokenizer):
    door.link.reply = lambda request, sibling: tokenizer.decode(request.prompt) * 3
    texts = [f"number {i}" for i in range(40)]

    def ask(text):
        chunks = door.client().completions.create(
            model="scripted", prompt=text, max_tokens=100, stream=True
        )
        got[text] = "".join(chunk.choices[0].text for chunk in chunks)

    got = {}
    threads = [threading.Thread(target=ask, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert got == {text: text * 3 for text in texts}


def test_pipelined_and_half_sent_requests(door):
    body = json.dumps({"prompt": "a"}).encode()
    one = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (
        len(body),
        body,
    )
    with socket.create_connection(("127.0.0.1", door.port)) as client:
        client.sendall(one + one)
        got = b""
        while got.count(b'"usage"') < 2:
            got += client.recv(65536)
    assert got.count(b"HTTP/1.1 200") == 2


def test_the_figures(door):
    door.client().completions.create(model="scripted", prompt="the fox", n=2)
    door.link.fail_after = 1
    with pytest.raises(openai.InternalServerError):
        door.client().completions.create(model="scripted", prompt="the fox")
    text = httpx.get(door.url + "/metrics").text
    figures = dict(line.rsplit(" ", 1) for line in text.splitlines() if line[:1] != "#")
    of = '{engine="0",model_name="scripted"}'
    assert float(figures[f"shoal_prompt_tokens_total{of}"]) > 0
    assert float(figures[f"shoal_generation_tokens_total{of}"]) > 0
    for name in (
        "time_to_first_token_seconds",
        "request_time_per_output_token_seconds",
        "e2e_request_latency_seconds",
        "request_prompt_tokens",
        "request_generation_tokens",
    ):
        assert float(figures[f"shoal_{name}_count{of}"]) >= 1
    for reason in ("stop", "error"):
        labels = f'{{engine="0",finished_reason="{reason}",model_name="scripted"}}'
        assert float(figures[f"shoal_request_success_total{labels}"]) >= 1
    for name, value in (
        ("num_requests_running", 2),
        ("num_requests_waiting", 1),
        ("kv_cache_usage_perc", 0.25),
        ("prefix_cache_queries_total", 40),
        ("prefix_cache_hits_total", 30),
        ("num_preemptions_total", 5),
    ):
        assert float(figures[f"shoal_{name}{of}"]) == value
    http_series = 'shoal_http_requests_total{handler="/v1/completions",method="POST",status="200"}'
    assert float(figures[http_series]) >= 1


def test_figures_do_not_grow_with_unknown_paths(door):
    for i in range(5):
        httpx.get(f"{door.url}/nothing/{i}")
    text = httpx.get(door.url + "/metrics").text
    assert "nothing" not in text
    assert 'handler="other"' in text
