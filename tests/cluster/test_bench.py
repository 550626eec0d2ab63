"""The load generator against a server whose answers are known, and the figures' arithmetic."""

from __future__ import annotations

import asyncio
import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from shoal.cluster import figures
from shoal.cluster.bench import UNBOUNDED, levels
from shoal.cluster.cli import app
from shoal.cluster.traffic import Level, Record, Run, drive
from shoal.cluster.workload import LOWEST_ID, Workload, token_ids, vocabulary_size
from shoal.engine.errors import ConfigError, ShoalError
from typer.testing import CliRunner


class Server:
    """Streams `max_tokens` chunks; remembers bodies and how many were served at once.

    Every `fail_every`-th request is refused, every `break_every`-th one broken off.
    """

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.at_once = self.most_at_once = 0
        self.fail_every = self.break_every = 0
        self.card: dict[str, Any] = {"id": "fake", "vocab_size": 300}
        self.loop = asyncio.new_event_loop()
        self.url = ""

    async def start(self) -> None:
        app = web.Application()
        app.router.add_get("/v1/models", self.models)
        app.router.add_post("/v1/completions", self.answer)
        app.router.add_post("/v1/chat/completions", self.answer)
        app.router.add_post("/detokenize", self.detokenize)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        assert site._server is not None
        self.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"

    async def models(self, _: web.Request) -> web.Response:
        return web.json_response({"data": [self.card]})

    async def detokenize(self, request: web.Request) -> web.Response:
        ids = (await request.json())["tokens"]
        return web.json_response({"prompt": " ".join(map(str, ids))})

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        number = len(self.bodies)
        if self.fail_every and number % self.fail_every == 0:
            return web.json_response({"error": {"message": "too busy"}}, status=429)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            return await self.stream(request, body, number)
        finally:
            self.at_once -= 1

    async def stream(
        self, request: web.Request, body: dict[str, Any], number: int
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)

        async def send(chunk: dict[str, Any]) -> None:
            await response.write(b"data: %s\n\n" % json.dumps(chunk).encode())

        chat = "messages" in body
        if chat:
            await send({"choices": [{"delta": {"role": "assistant", "content": ""}}]})
        for _ in range(body["max_tokens"]):
            await asyncio.sleep(0.001)
            await send({"choices": [{"delta": {"content": "x"}} if chat else {"text": "x"}]})
            if self.break_every and number % self.break_every == 0:
                return response
        usage = {"prompt_tokens": 7, "completion_tokens": body["max_tokens"]}
        await send({"choices": [], "usage": usage})
        await response.write(b"data: [DONE]\n\n")
        return response


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    server.loop.run_until_complete(server.start())
    thread = threading.Thread(target=server.loop.run_forever)
    thread.start()
    yield server
    server.loop.call_soon_threadsafe(server.loop.stop)
    thread.join()


def bench(server: Server, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "shoal", "bench", "serve", "--url", server.url, *args]
    environ = {**os.environ, "COLUMNS": "120"}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environ)


def test_levels_of_a_closed_loop(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    shape = ["--input-len", "10", "--output-len", "5", "--shared-prefix-len", "4"]
    done = bench(
        server, "--max-concurrency", "1,4", "--num-prompts", "12", *shape, "--json", str(file)
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "4 at once" in done.stdout and "output tokens/s" in done.stdout
    assert server.most_at_once == 4
    found = json.loads(file.read_text())
    assert found["workload"]["model"] == "fake"
    for level in found["levels"]:
        assert (level["completed"], level["failed"], level["ended_early"]) == (12, 0, 0)
        assert (level["mean_prompt_tokens"], level["mean_output_tokens"]) == (7, 5)
        assert 0 < level["ttft_ms"]["p50"] <= level["e2e_ms"]["p50"] <= level["e2e_ms"]["p99"]
    prompts = [tuple(body["prompt"]) for body in server.bodies]
    assert len(prompts) == 12 + 12 + 1 + 4
    assert len(set(prompts)) == len(prompts)
    assert len({prompt[:4] for prompt in prompts}) == 1
    assert all(len(p) == 10 and min(p) >= LOWEST_ID and max(p) < 300 for p in prompts)
    assert all(body["ignore_eos"] and body["stream_options"] for body in server.bodies)


def test_failures_are_counted_and_named(server: Server, tmp_path: Path) -> None:
    server.fail_every, server.break_every = 3, 4
    file = tmp_path / "figures.json"
    sizes = ["--num-warmups", "0", "--num-prompts", "12", "--output-len", "3"]
    done = bench(server, *sizes, "--json", str(file))
    assert done.returncode == 1
    (level,) = json.loads(file.read_text())["levels"]
    assert (level["completed"], level["failed"]) == (6, 6)
    assert "429: too busy" in done.stderr
    assert "the stream ended without [DONE]" in done.stderr


def test_chat_prompts_are_the_text_of_the_ids(server: Server) -> None:
    sizes = ["--num-warmups", "0", "--num-prompts", "2", "--input-len", "3", "--output-len", "2"]
    done = bench(server, "--endpoint", "chat", *sizes)
    assert done.returncode == 0
    for body in server.bodies:
        assert len(body["messages"][0]["content"].split()) == 3


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--max-concurrency", "1,x"), "expected numbers such as 8 or 1,8,32"),
        (("--model", "other"), "serves no 'other', but: fake"),
        (("--endpoint", "talk"), "--endpoint must be completions or chat"),
        (("--tokenizer", "/nowhere"), "--tokenizer /nowhere is no folder"),
        (("--shared-prefix-len", "500"), "cannot exceed it"),
    ],
)
def test_a_wrong_call_is_refused(server: Server, args: tuple[str, ...], said: str) -> None:
    result = CliRunner().invoke(app, ["bench", "serve", "--url", server.url, *args])
    assert isinstance(result.exception, ShoalError)
    assert said in result.exception.message


def test_a_rate_does_not_wait_for_answers(server: Server) -> None:
    body = json.dumps({"prompt": [1], "max_tokens": 400}).encode()
    level = Level(concurrency=UNBOUNDED, rate=1000.0)
    run = asyncio.run(drive(server.url + "/v1/completions", level, [body] * 8, headers={}))
    assert [record.error for record in run.records] == [None] * 8
    assert server.most_at_once > 1
    begins = sorted(record.begin for record in run.records)
    assert len(set(begins)) == 8


def test_levels_as_they_are_written() -> None:
    assert [level.concurrency for level in levels("1,8,32", None)] == [1, 8, 32]
    assert levels(None, None) == (Level(concurrency=8),)
    assert levels(None, 2.0) == (Level(concurrency=UNBOUNDED, rate=2.0),)
    assert levels("4", 2.0) == (Level(concurrency=4, rate=2.0),)
    for wrong in ("0", "", "1,,2", "-1"):
        with pytest.raises(ConfigError):
            levels(wrong, None)
    with pytest.raises(ConfigError):
        levels(None, 0.0)


def test_prompts_are_drawn_from_the_seed_alone() -> None:
    shape = Workload(model="m", input_len=6, shared_prefix_len=2, seed=3)
    assert token_ids(shape, 100, 5, "a") == token_ids(shape, 100, 5, "a")
    assert token_ids(shape, 100, 5, "a") != token_ids(shape, 100, 5, "b")
    assert token_ids(shape, 2, 1, "a")[0] == [1] * 6


def test_the_vocabulary_is_found(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"text_config": {"vocab_size": 77}}')
    assert vocabulary_size({}, 9) == 9
    assert vocabulary_size({"vocab_size": 5}, str(tmp_path)) == 77
    assert vocabulary_size({"vocab_size": 5}, None) == 5
    assert vocabulary_size({"root": str(tmp_path)}, None) == 77
    assert vocabulary_size({"root": "org/name"}, None) is None


def test_the_figures() -> None:
    def record(first: float, *, error: str | None = None) -> Record:
        arrivals = [first, first + 0.010, first + 0.030]
        return Record(
            begin=0.0, end=arrivals[-1], arrivals=arrivals, num_prompt=4, num_output=5, error=error
        )

    run = Run(
        level=Level(concurrency=2),
        records=(record(0.1), record(0.2), record(0.3), record(0.9, error="no")),
        duration_s=2.0,
        client_cpu_s=1.5,
    )
    found = figures.summary(run, Workload(model="m", output_len=6))
    assert (found["completed"], found["failed"], found["errors"]) == (3, 1, ["no"])
    assert (found["output_tokens_per_s"], found["total_tokens_per_s"]) == (7.5, 13.5)
    assert found["ttft_ms"] == pytest.approx({"p50": 200, "p90": 280, "p99": 298})
    assert found["tpot_ms"]["p50"] == pytest.approx(30 / 4)
    assert found["itl_ms"]["p50"] == pytest.approx(15)
    assert found["e2e_ms"]["p90"] == pytest.approx(310)
    assert found["ended_early"] == 3
    assert math.isclose(found["client_cpu_share"], 0.75)
    told = figures.warnings([found])
    assert told[0] == "no" and "shorter" in told[1] and "busy" in told[2]
    nothing = figures.summary(
        Run(level=Level(concurrency=1), records=(), duration_s=1.0, client_cpu_s=0.0),
        Workload(model="m"),
    )
    assert nothing["ttft_ms"] == {"p50": None, "p90": None, "p99": None}
    figures.table([found, nothing])
