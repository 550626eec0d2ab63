"""`run_local` as a process: loading, serving, signals, a port that is taken."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx2 as httpx
import pytest
from shoal.cluster import local
from shoal.cluster.banner import Progress
from shoal.cluster.ports import free_port
from shoal.cluster.settings import serve_config

PROGRAM = """
import sys
from shoal.cluster.settings import serve_config
from shoal.cluster.local import run_local
import json
run_local(serve_config(json.loads(sys.argv[1]), environ={}))
"""


class Process:
    """A server in a process of its own."""

    def __init__(self, folder, logs, **settings):
        self.port = settings.setdefault("port", free_port())
        self.url = f"http://127.0.0.1:{self.port}"
        settings = {"model": folder, "local": True, **settings}
        settings |= {"log_dir": str(logs), "served_model_name": ["m"]}
        settings |= {"threads": 1, "num_gpu_blocks_override": 256}
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, json.dumps(settings)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def health(self):
        try:
            return httpx.get(f"{self.url}/health", timeout=60).json()["status"]
        except httpx.TransportError:
            return None

    def until(self, *wanted):
        deadline = time.monotonic() + 120
        while (found := self.health()) not in wanted:
            assert self.process.poll() is None, self.process.stdout.read()
            assert time.monotonic() < deadline, found
            time.sleep(0.02)

    def end(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        return self.process.wait(180), self.process.stdout.read()


@pytest.fixture
def start(model_folder, tmp_path):
    begun = []

    def start_(**settings):
        begun.append(Process(model_folder, tmp_path, **settings))
        return begun[-1]

    yield start_
    for server in begun:
        if server.process.poll() is None:
            server.process.kill()
        server.process.wait()
        server.process.stdout.close()


class Reader:
    """Reads a long stream on a thread."""

    def __init__(self, server, **fields):
        self._url = f"{server.url}/v1/completions"
        self._body = {"prompt": "a", "max_tokens": 250, "min_tokens": 250, "stream": True, **fields}
        self._pieces = []
        self._begun = threading.Event()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()
        assert self._begun.wait(60)

    def _read(self):
        with httpx.stream("POST", self._url, json=self._body, timeout=60) as answer:
            for piece in answer.iter_text():
                self._pieces.append(piece)
                self._begun.set()

    def events(self):
        self._thread.join(60)
        return "".join(self._pieces).strip().split("\n\n")


def test_it_loads_serves_and_lets_streams_end(start, tmp_path):
    server = start()
    server.until("loading", "ready")
    early = httpx.post(f"{server.url}/v1/completions", json={"prompt": "secret words"})
    assert early.status_code == 200 or early.headers["retry-after"]
    server.until("ready")
    headers = {"x-request-id": "known-by-this"}
    body = {"prompt": "secret words", "max_tokens": 2}
    answer = httpx.post(f"{server.url}/v1/completions", json=body, headers=headers)
    assert answer.json()["usage"]["completion_tokens"] <= 2
    stream = Reader(server, n=4)
    code, said = server.end(signal.SIGTERM)
    *told, done = stream.events()
    assert code == 0
    assert done == "data: [DONE]"
    assert sum('"finish_reason":"length"' in event for event in told) == 4
    assert not any("error" in event for event in told)
    assert f"{server.url}/v1" in said
    logged = "".join(file.read_text() for file in tmp_path.glob("*.log*"))
    assert "known-by-this" in logged
    assert "secret words" not in logged + said


def test_who_waits_for_an_engine_that_has_died_is_told_at_once(model_folder, tmp_path):
    """No other one comes for it, however long a stream may wait for one."""
    settings = {"model": model_folder, "log_dir": str(tmp_path), "port": free_port(), "threads": 1}
    settings |= {"num_gpu_blocks_override": 256, "failover_timeout": 3600}
    config = serve_config(settings | {"local": True}, environ={})
    server = local._Local(config, Progress())
    answers = []

    def die(plan):
        raise RuntimeError("out of order")

    def ask():
        until = time.monotonic() + 60
        while server._router.status() != "ready" and time.monotonic() < until:
            time.sleep(0.02)
        for link in server._router.engines():
            link._engine.executor._rank.run = die
        for _ in range(2):
            body = {"prompt": "a", "max_tokens": 4}
            answers.append(httpx.post(f"{config.url}/v1/completions", json=body, timeout=60))
        server._loop.call_soon_threadsafe(server._leave)

    asking = threading.Thread(target=ask)
    asking.start()
    asyncio.run(server.serve())
    asking.join(60)
    waited, refused = (answer.json()["error"]["message"] for answer in answers)
    assert "out of order" in waited and "is left, and none is started again" in waited
    assert "is alive" in refused
    assert [answer.status_code for answer in answers] == [503, 503]


def test_a_stream_that_outlasts_the_shutdown_is_told(start):
    server = start(shutdown_timeout=0)
    server.until("ready")
    stream = Reader(server, n=100)
    code, _ = server.end(signal.SIGINT)
    *_, error, done = stream.events()
    assert code == 0
    assert done == "data: [DONE]"
    assert "shutting down" in json.loads(error.removeprefix("data: "))["error"]["message"]


def test_a_port_that_is_taken_is_an_error_with_its_holder(start):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = start(port=listener.getsockname()[1])
        said = server.process.communicate(timeout=120)[0]
    assert server.process.returncode != 0
    assert f"process {os.getpid()}" in said


def test_a_model_that_cannot_be_loaded_ends_the_process(tmp_path, tokenizer_folder):
    server = Process(tokenizer_folder, tmp_path)
    said = server.process.communicate(timeout=120)[0]
    assert server.process.returncode != 0
    assert "config.json" in said
