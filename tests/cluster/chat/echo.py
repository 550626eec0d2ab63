"""A server that says what it is told to say."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PARTS = {
    "escape": ["\x1b]0;owned\x07", "\x9b31m", "&#27;[31m", "red"],
    "code": [
        "Look:\n\n",
        "```python\n",
        *(f"line_{i} = {i}\n" for i in range(100)),
        "```\nthe end",
    ],
}


class Server(ThreadingHTTPServer):
    """Answers chat with the words of the last message, completions with those of the prompt.

    A word `hang` is streamed and followed by nothing until the client goes; `break` ends the
    stream without an end, `fail` with an error. `escape` is answered with what a terminal would
    obey, `code` with a long block of code.
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
            words = PARTS.get(text := body["messages"][-1]["content"], text.split(" "))
            self.stream(words, lambda word: {"delta": {"content": word}})
        else:
            self.stream(body["prompt"].split(" "), lambda word: {"text": word})

    def stream(self, words: list[str], choice: Any) -> None:
        if words == ["refuse"]:
            return self.answer(400, {"error": {"message": "no \x1bsuch thing", "param": "x"}})
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        for number, word in enumerate(words):
            text = word if number == 0 or "\n" in word else f" {word}"
            self.wfile.write(b"data: %s\n\n" % json.dumps({"choices": [choice(text)]}).encode())
            self.wfile.flush()
            if word == "hang":
                self.rfile.read(1)
                self.server.gone.set()
            if word == "fail":
                error = {"error": {"message": "row went bad", "code": "engine_unavailable"}}
                self.wfile.write(b"data: %s\n\n" % json.dumps(error).encode())
            if word in ("hang", "break", "fail"):
                return None
        usage = {"prompt_tokens": 7, "completion_tokens": len(words)}
        end = json.dumps({"choices": [], "usage": usage}).encode()
        self.wfile.write(b"data: %s\n\ndata: [DONE]\n\n" % end)

    def answer(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
