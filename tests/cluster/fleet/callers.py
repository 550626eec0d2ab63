"""Clients that stream all the time, while something happens to those that answer."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx2 as httpx
from served import wait


def chunks(port: int, model: str, tokens: int) -> Iterator[dict[str, Any]]:
    """What a stream is told, until its end."""
    url = f"http://127.0.0.1:{port}/v1/completions"
    body = {"model": model, "prompt": "x", "max_tokens": tokens, "stream": True}
    with httpx.stream("POST", url, json=body, timeout=60) as answer:
        assert answer.status_code == 200, answer.read()
        for line in answer.iter_lines():
            data = line.removeprefix("data: ")
            if data == "[DONE]":
                return
            if data:
                yield json.loads(data)


class Streams:
    """Streams of a model one after another, in a thread each, until `end`; none may differ."""

    def __init__(self, port: int, model: str, num: int = 2, tokens: int = 300) -> None:
        self.url = f"http://127.0.0.1:{port}/v1/completions"
        self.body = {"model": model, "prompt": "x", "max_tokens": tokens, "stream": True}
        self.texts: list[str] = []
        self.failures: list[str] = []
        self.ending = threading.Event()
        self.threads = [threading.Thread(target=self._run, daemon=True) for _ in range(num)]
        for thread in self.threads:
            thread.start()
        wait(lambda: len(self.texts) >= num)

    def end(self) -> None:
        self.ending.set()
        for thread in self.threads:
            thread.join(60)
        assert not self.failures, self.failures[:5]
        assert len(set(self.texts)) == 1 and len(self.texts) > len(self.threads)

    def _run(self) -> None:
        with httpx.Client(timeout=60) as client:
            while not self.ending.is_set():
                try:
                    self.texts.append(self._one(client))
                except Exception as error:
                    self.failures.append(f"{type(error).__name__}: {error}")

    def _one(self, client: httpx.Client) -> str:
        pieces = []
        with client.stream("POST", self.url, json=self.body) as answer:
            assert answer.status_code == 200, answer.read()
            for line in answer.iter_lines():
                data = line.removeprefix("data: ")
                if data == "[DONE]":
                    return "".join(pieces)
                if data:
                    chunk = json.loads(data)
                    assert "error" not in chunk, chunk
                    pieces.append(chunk["choices"][0]["text"])
        raise AssertionError("a stream ended without its end")
