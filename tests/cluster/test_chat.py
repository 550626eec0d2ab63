"""The terminal clients against a server that answers as told."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from shoal.cluster.client import Client, ClientError, base


class Server(ThreadingHTTPServer):
    """Answers chat with the words of the last message, completions with those of the prompt.

    A word `hang` is streamed and followed by nothing until the client goes; `break` ends the
    stream without an end.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.bodies: list[dict[str, Any]] = []
        self.gone = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.headers.get("Authorization") == "Bearer wrong":
            return self.answer(401, {"error": {"message": "wrong key"}})
        return self.answer(200, {"data": [{"id": "echo"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        if "messages" in body:
            words = body["messages"][-1]["content"].split(" ")
            self.stream(words, lambda word: {"delta": {"content": word}})
        else:
            self.stream(body["prompt"].split(" "), lambda word: {"text": word})

    def stream(self, words: list[str], choice: Any) -> None:
        if words == ["refuse"]:
            return self.answer(400, {"error": {"message": "no such thing", "param": "x"}})
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        for number, word in enumerate(words):
            text = word if number == 0 else f" {word}"
            self.wfile.write(b"data: %s\n\n" % json.dumps({"choices": [choice(text)]}).encode())
            self.wfile.flush()
            if word == "hang":
                self.rfile.read(1)
                self.server.gone.set()
            if word in ("hang", "break"):
                return None
        self.wfile.write(b'data: {"choices": [], "usage": {}}\n\ndata: [DONE]\n\n')

    def answer(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def shoal(*args: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "shoal", *args]
    environ = {k: v for k, v in os.environ.items() if k != "SHOAL_API_KEY"}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, env=environ, **options
    )


def test_a_completion_is_printed(server: Server) -> None:
    done = shoal("complete", "one two", "--url", server.url, "--max_tokens", "5")
    assert (done.returncode, done.stdout, done.stderr) == (0, "one two\n", "")
    assert server.bodies == [
        {"model": "echo", "prompt": "one two", "max_tokens": 5, "stream": True}
    ]
    assert shoal("complete", "-", "--url", server.url, input="a b").stdout == "a b\n"


def test_each_line_of_a_file_is_a_turn(server: Server) -> None:
    done = shoal("chat", "--url", server.url + "/v1/", "--system", "be kind", input="hi\n\nbye\n")
    assert (done.returncode, done.stdout) == (0, "hi\nbye\n")
    roles = [message["role"] for message in server.bodies[1]["messages"]]
    assert roles == ["system", "user", "assistant", "user"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("refuse", "error: the server answered 400: no such thing"),
        ("a break", "error: the answer broke off: the stream ended without [DONE]"),
    ],
)
def test_errors_are_one_line_and_code_1(server: Server, text: str, said: str) -> None:
    done = shoal("complete", text, "--url", server.url)
    assert (done.returncode, done.stderr.strip()) == (1, said)


def test_a_wrong_key_and_no_server(server: Server) -> None:
    refused = shoal("complete", "x", "--url", server.url, "--api-key", "wrong")
    assert "401: wrong key. Give the server's key with --api-key" in refused.stderr
    absent = shoal("chat", "--url", "127.0.0.1:9")
    assert absent.returncode == 1
    assert "no server answers at http://127.0.0.1:9 (Connection refused)" in absent.stderr
    assert "shoal serve" in absent.stderr


def test_ctrl_c_interrupts_an_answer_and_ctrl_d_leaves(server: Server) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "shoal", "chat", "--url", server.url]
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    seen = b""

    def read_until(part: bytes) -> None:
        nonlocal seen
        while part not in seen:
            seen += os.read(ours, 4096)
        seen = seen.split(part, 1)[1]

    try:
        read_until(b"> ")
        os.write(ours, b"one hang\n")
        read_until(b"one hang\r\n")
        read_until(b"one hang")
        process.send_signal(signal.SIGINT)
        read_until(b"interrupted")
        assert server.gone.wait(60)
        read_until(b"> ")
        os.write(ours, b"two\n")
        read_until(b"two\r\n")
        read_until(b"two\r\n")
        read_until(b"> ")
        os.write(ours, b"\x04")
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    assert [message["content"] for message in server.bodies[1]["messages"]] == [
        "one hang",
        "one hang",
        "two",
    ]


def test_an_interrupted_completion_ends_with_130(server: Server) -> None:
    command = [sys.executable, "-m", "shoal", "complete", "go hang", "--url", server.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.read(7) == b"go hang"
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert b"Traceback" not in process.stderr.read()


def test_addresses_as_people_type_them() -> None:
    assert base("localhost:8000") == "http://localhost:8000"
    assert base("https://h/v1/") == "https://h"
    for wrong in ("ftp://x", "http://", ""):
        with pytest.raises(ClientError, match="no address"):
            base(wrong)


def test_a_server_that_speaks_something_else() -> None:
    class Plain(Handler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"hi")

    with ThreadingHTTPServer(("127.0.0.1", 0), Plain) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(ClientError, match="does not speak JSON"):
            Client(f"127.0.0.1:{server.server_address[1]}").models()
        server.shutdown()
