"""Nothing of a request is in a cycle: what it held is free as soon as it is answered, without
Python's search for garbage, which a server makes seldom.
"""

from __future__ import annotations

import dataclasses
import gc
import http.client
import json
import socket
import threading
import time
from collections import Counter

import httpx2 as httpx
import pytest
from shoal.cluster import answer, sender, stream
from shoal.cluster.answer import Answer
from shoal.cluster.connection import Connection
from shoal.cluster.formats import ChatFormat, CompletionFormat
from shoal.cluster.lives import Life
from shoal.cluster.sender import Sender
from shoal.cluster.state import Choice, StreamState
from shoal.cluster.stream import Generation, Teller
from shoal.engine.engine import _Stream
from shoal.engine.errors import Overloaded
from shoal.engine.request import Request, SamplingParams
from shoal.engine.sequence import Family, Sequence
from shoal.engine.text import TextStream
from starlette.requests import Request as HTTPRequest
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

OURS = {Answer, Sender, CompletionFormat, ChatFormat, Generation, Teller, TextStream, Life}
OURS |= {StreamState, Choice, Request, SamplingParams, Sequence, Family, _Stream}
THEIRS = {Connection, RequestResponseCycle, HTTPRequest}

LONG = {"prompt": "the quick brown fox " * 400, "echo": True, "logprobs": 5}


@pytest.fixture
def left():
    """What is left of all requests since, by its type, once it has had the time to go."""
    gc.collect()
    gc.freeze()  # what was there before is not counted
    gc.disable()

    def count():
        every = gc.get_objects()
        return Counter(type(it).__name__ for it in every if type(it) in OURS | THEIRS)

    def wait(seconds=20.0):
        deadline = time.monotonic() + seconds
        while (found := count()) and time.monotonic() < deadline:
            time.sleep(0.005)
        return found

    yield wait
    gc.enable()
    gc.unfreeze()
    gc.collect()


def until(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


def post(door, status=200, path="/v1/completions", **body):
    body = {"prompt": [5, 6], "max_tokens": 8, **body}
    told = httpx.post(door.url + path, json=body, timeout=60)
    assert told.status_code == status, told.text
    return told.text


def begin(door, **body):
    """A request over a socket of our own, once the engine has it; its answer is not awaited."""
    connection = http.client.HTTPConnection("127.0.0.1", door.port, timeout=60)
    body = {"prompt": [5, 6], "max_tokens": 200, "ignore_eos": True, **body}
    connection.request("POST", "/v1/completions", json.dumps(body))
    until(lambda: door.link.seen)
    return connection


def whole(door, **body):
    post(door, n=2, logprobs=1, **body)
    post(door, path="/v1/chat/completions", messages=[{"role": "user", "content": "a"}], **body)


def streamed(door):
    whole(door, stream=True, stream_options={"include_usage": True})


def of_several_prompts(door):
    post(door, prompt=["a", "b"], best_of=2, stop=["o"])


def refused(door):
    door.link.refusal = Overloaded("gone")
    post(door, 429)


def impossible(door):
    post(door, 400, prompt=[5] * 1000)
    post(door, 400, prompt="a" * 10_000)


def failed(door):
    door.link.fail_after = 2
    post(door, 500)
    assert "row went bad" in post(door, stream=True)


def widen(door):
    door.link.card = dataclasses.replace(door.link.card, max_model_len=1 << 20)


def written_beside_the_loop(door):
    widen(door)
    for streams in (False, True):
        post(door, **LONG, stream=streams)


def impossible_to_write(door):
    def broken(*of):
        raise RuntimeError("no words for it")

    widen(door)
    with pytest.MonkeyPatch.context() as patch:
        for log in (answer.log, stream.log):
            patch.setattr(log, "disabled", True)  # what is logged here is kept, frames and all
        for name in ("chunk", "whole"):
            patch.setattr(CompletionFormat, name, broken)
        for fields in ({}, LONG):
            post(door, 500, **fields)
            post(door, 500, **fields, stream=True)


def left_before_an_answer(door):
    door.link.paused = True
    begin(door).close()
    until(lambda: door.link.aborted)


def left_in_the_middle(door):
    connection = begin(door, stream=True)
    connection.getresponse().read(1)
    connection.close()
    until(lambda: not door.link.live)


def left_while_it_is_written(door):
    widen(door)
    begun, go, plain = threading.Event(), threading.Event(), CompletionFormat.chunk

    def chunk(self, *of):
        begun.set()
        assert go.wait(60)
        return plain(self, *of)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CompletionFormat, "chunk", chunk)
        connection = begin(door, **LONG, stream=True)
        assert begun.wait(60)
        connection.close()
        until(lambda: not door.link.live)
        go.set()


def read_too_slowly(door):
    door.link.reply = lambda request, sibling: "x" * 5000
    body = {"prompt": [5], "n": 100, "max_tokens": 250, "stream": True, "logprobs": 5}
    sent = json.dumps(body)
    with pytest.MonkeyPatch.context() as patch, socket.socket() as slow:
        patch.setattr(sender.Sender.__init__, "__defaults__", (20_000,))
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", door.port))
        head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(sent)}\r\n\r\n"
        slow.sendall(head.encode() + sent.encode())
        until(lambda: any(sibling is None for _, sibling in door.link.aborted))
        while slow.recv(1 << 16):
            pass


USES = (whole, streamed, of_several_prompts, refused, impossible, failed, written_beside_the_loop)
USES += (impossible_to_write, left_before_an_answer, left_in_the_middle, left_while_it_is_written)
USES += (read_too_slowly,)


@pytest.mark.parametrize("use", USES)
def test_of_a_request_nothing_is_left(door, left, use):
    use(door)
    door.link.seen.clear()
    assert left() == {}


def beams(served):
    post(served, use_beam_search=True, n=2, best_of=3, temperature=0)


@pytest.mark.parametrize("use", [whole, streamed, of_several_prompts, beams])
def test_of_a_request_to_a_real_engine_nothing_is_left(served, left, use):
    use(served)
    assert left() == {}


def test_of_an_aborted_request_to_a_real_engine_nothing_is_left(served, left):
    for body in ({"stream": True}, {"n": 3}, {"use_beam_search": True, "n": 3, "temperature": 0}):
        body = {"prompt": "a", "max_tokens": 200, "ignore_eos": True, **body}
        with socket.create_connection(("127.0.0.1", int(served.url.rpartition(":")[2]))) as client:
            sent = json.dumps(body)
            head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(sent)}\r\n"
            client.sendall(f"{head}\r\n{sent}".encode())
            until(lambda: not served.idle())
    until(served.idle)
    assert left() == {}
