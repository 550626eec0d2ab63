"""The terminal clients without a terminal, against a server that answers as told."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import ThreadingHTTPServer

import pytest
from shoal.cluster.client import Client, ClientError, base

from tests.cluster.chat.echo import Handler, Server

Shoal = Callable[..., subprocess.CompletedProcess[str]]


def test_a_completion_is_printed(server: Server, shoal: Shoal) -> None:
    done = shoal("complete", "one two", "--url", server.url, "--max_tokens", "5")
    assert (done.returncode, done.stdout, done.stderr) == (0, "one two\n", "")
    assert server.bodies == [
        {"model": "echo", "prompt": "one two", "max_tokens": 5, "stream": True}
    ]
    assert shoal("complete", "-", "--url", server.url, input="a b").stdout == "a b\n"
    assert shoal("complete", "-q", "a b", "--url", server.url).stdout == "a b\n"
    assert shoal("complete", "--url", server.url).returncode == 2


def test_each_line_of_a_file_is_a_turn(server: Server, shoal: Shoal) -> None:
    done = shoal("chat", "--url", server.url + "/v1/", "--system", "be kind", input="hi\n\nbye\n")
    assert (done.returncode, done.stdout) == (0, "hi\nbye\n")
    roles = [message["role"] for message in server.bodies[1]["messages"]]
    assert roles == ["system", "user", "assistant", "user"]


def test_through_a_pipe_an_answer_is_exactly_itself(server: Server, shoal: Shoal) -> None:
    done = shoal("chat", "--url", server.url, input="**bold** `x`\n")
    assert (done.returncode, done.stdout) == (0, "**bold** `x`\n")
    assert shoal("chat", "-q", "a  b", "--url", server.url).stdout == "a  b\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("refuse", "error: the server answered 400: no \u241bsuch thing"),
        ("a fail", "error: the answer broke off: row went bad"),
        ("a break", "error: the answer broke off: the stream ended without [DONE]"),
    ],
)
def test_errors_are_one_line_and_code_1(server: Server, shoal: Shoal, text: str, said: str) -> None:
    done = shoal("complete", text, "--url", server.url)
    assert (done.returncode, done.stderr.strip()) == (1, said)


def test_a_wrong_key_and_no_server(server: Server, shoal: Shoal) -> None:
    refused = shoal("complete", "x", "--url", server.url, "--api-key", "wrong")
    assert "401: wrong key. Give the server's key with --api-key" in refused.stderr
    absent = shoal("chat", "--url", "127.0.0.1:9")
    assert absent.returncode == 1
    assert "no server answers at http://127.0.0.1:9 (Connection refused)" in absent.stderr
    assert "shoal serve" in absent.stderr


@pytest.mark.parametrize("args", [("complete",), ("chat", "-q")])
def test_an_interrupted_answer_ends_with_130(server: Server, args: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "shoal", *args, "go hang", "--url", server.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.read(7) == b"go hang"
        process.send_signal(signal.SIGINT)
        assert process.wait(180) == 130
        assert b"Traceback" not in process.stderr.read()


def test_addresses_as_people_type_them() -> None:
    assert base("localhost:8000") == "http://localhost:8000"
    assert base("https://h/v1/") == "https://h"
    assert base(":8711") == "http://127.0.0.1:8711"
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
        with pytest.raises(ClientError, match=r"If it serves http, say http://"):
            Client(f"https://127.0.0.1:{server.server_address[1]}").models()
        server.shutdown()
