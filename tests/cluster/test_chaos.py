"""What `shoal bench chaos` counts as the same, and its report."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import web
from shoal.cluster.chaos import Fault, Plan, run, summary, table
from shoal.cluster.chaos_faults import FAULTS, Processes, named
from shoal.cluster.chaos_streams import AGAIN_S, Told, bodies, tell_all
from shoal.cluster.cli import app
from shoal.cluster.client import Client
from shoal.cluster.ports import free_port
from shoal.engine.errors import ConfigError
from typer.testing import CliRunner

RESET = struct.pack("ii", 1, 0)
"""Linger for no time: a close is a reset."""


def told(text: str = "a", logprob: float = -0.5, error: str | None = None) -> Told:
    piece = {"text": text, "logprobs": {"token_logprobs": [logprob]}, "finish_reason": None}
    return Told(choices={0: [piece]}, usage={"total_tokens": 3}, error=error, pause_s=0.25)


def test_a_byte_that_differs_is_found_with_its_place() -> None:
    assert told().difference(told(logprob=-0.500001)) is None
    assert told().difference(told("b")) == "[0].0[0].text: 'a' != 'b'"
    assert "token_logprobs" in (told().difference(told(logprob=-0.6)) or "")
    longer = told()
    longer.choices[0] = longer.choices[0] * 2
    assert longer.difference(told())
    assert told().difference(Told(choices={1: []})) is not None


def test_the_report_counts_what_finished_and_what_is_the_same() -> None:
    faults = [Fault("kill", 7, 1.0, 2.5), Fault("stop", 8, 4.0, None)]
    streams = [told(), told("x"), told(), told(error="lost")]
    found = summary([told(), told()], streams, faults, 9.0, 0.5)
    assert (found["streams"], found["finished"], found["identical"]) == (4, 3, 2)
    assert found["pause_ms"]["p99"] == 250
    assert found["errors"] == ["lost"] and len(found["differences"]) == 1
    assert table(found, FAULTS).row_count > 8
    json.dumps(found)


def test_requests_are_of_every_kind_and_each_has_its_seed() -> None:
    made = [json.loads(body) for body in bodies("m", 12, 8, seed=0)]
    assert len({one["seed"] for one in made}) == 12
    assert {"n", "logprobs", "stop", "presence_penalty"} <= {key for one in made for key in one}
    assert bodies("m", 12, 8, seed=0) == bodies("m", 12, 8, seed=0)


def test_streams_that_were_open_at_the_same_moment_are_counted() -> None:
    streams = [Told(began=began, ended=began + 2) for began in (0, 1, 1.5, 2, 9)]
    assert summary([told()], streams, [], 9.0, None)["at_once"] == 3


def test_a_fault_that_is_none_or_could_befall_nobody_is_refused() -> None:
    with pytest.raises(ConfigError, match="flood"):
        named("kill,flood")
    assert named("kill,term") == ("kill", "term")
    with pytest.raises(ConfigError, match=f"process {os.getpid()} has not got a rank's worker"):
        Processes(os.getpid(), ("worker",), 1.0)


def test_a_stream_whose_door_is_away_is_asked_for_again_until_it_is_back() -> None:
    event = {"choices": [{"index": 0, "text": "a"}]}
    page = b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n"
    page += b"data: %b\n\ndata: [DONE]\n\n" % json.dumps(event).encode()
    port = free_port()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(page)
        writer.close()

    async def test() -> None:
        options = {"headers": {}, "concurrency": 2, "timeout_s": 60.0}
        asked = tell_all(f"http://127.0.0.1:{port}/", [b"{}"] * 2, **options)
        telling = asyncio.create_task(asked)
        await asyncio.sleep(2 * AGAIN_S)
        assert not telling.done()
        async with await asyncio.start_server(answer, "127.0.0.1", port):
            one, other = await telling
        assert one.error is None and one.choices == {0: [{"text": "a"}]}
        assert one.difference(other) is None

    asyncio.run(test())


def test_a_stream_that_is_cut_off_before_its_answer_lost_its_gateway() -> None:
    async def cut_off(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        writer.transport.abort()

    async def test() -> None:
        async with await asyncio.start_server(cut_off, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            options = {"headers": {}, "concurrency": 1, "timeout_s": 60.0}
            (told,) = await tell_all(f"http://127.0.0.1:{port}/", [b"{}"], **options)
        assert told.hung_up and told.error and not told.choices

    asyncio.run(test())


class Door:
    """A server that is always whole; streams are told `texts` in turn, the last one ever after."""

    def __init__(self) -> None:
        self.texts = ["a"]
        self.loop = asyncio.new_event_loop()
        self.url = ""

    async def start(self) -> None:
        door = web.Application()
        door.router.add_get("/v1/models", self.models)
        door.router.add_get("/health", self.health)
        door.router.add_get("/cluster", self.cluster)
        door.router.add_post("/v1/completions", self.answer)
        self.runner = web.AppRunner(door)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self.runner.addresses[0][1]}"

    async def models(self, _: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "m"}]})

    async def health(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "ready"})

    async def cluster(self, _: web.Request) -> web.Response:
        return web.json_response({"replicas": []})

    async def answer(self, _: web.Request) -> web.Response:
        text = self.texts.pop(0) if len(self.texts) > 1 else self.texts[0]
        event = {"choices": [{"index": 0, "text": text}]}
        return web.Response(text=f"data: {json.dumps(event)}\n\ndata: [DONE]\n\n")


@pytest.fixture
def door() -> Iterator[Door]:
    door = Door()
    door.loop.run_until_complete(door.start())
    thread = threading.Thread(target=door.loop.run_forever)
    thread.start()
    yield door
    asyncio.run_coroutine_threadsafe(door.runner.cleanup(), door.loop).result()
    door.loop.call_soon_threadsafe(door.loop.stop)
    thread.join()
    door.loop.close()


class Harmless:
    """Faults that nobody feels."""

    words = FAULTS

    async def strike(self, kind: str, number: int) -> int | None:
        """See `chaos.Faults`."""
        await asyncio.sleep(0)
        return 7


def plan(every_s: float) -> Plan:
    return Plan(
        streams=2,
        distinct=1,
        concurrency=1,
        output_len=1,
        faults=("kill",),
        every_s=every_s,
        timeout_s=60.0,
    )


def test_streams_that_are_the_same_under_faults_are_a_success(door: Door, tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    assert run(Client(door.url), plan(0.0), Harmless(), file)
    found = json.loads(file.read_text())
    assert found["identical"] == 2 and found["faults"] and found["command"]


def test_a_text_that_differs_may_hold_anything(
    door: Door, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    door.texts = ["[/x]", "[/y]"]
    file = tmp_path / "found.json"
    assert not run(Client(door.url), plan(0.0), Harmless(), file)
    assert json.loads(file.read_text())["identical"] == 0
    assert "'[/y]' != '[/x]'" in capsys.readouterr().err


def test_a_run_without_a_fault_shows_nothing(
    door: Door, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "found.json"
    assert not run(Client(door.url), plan(3600.0), Harmless(), file)
    assert json.loads(file.read_text())["identical"] == 2
    assert "no fault was made" in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_refused_before_the_run(door: Door) -> None:
    line = ["bench", "chaos", "--url", door.url, "--json", "/nowhere/x.json"]
    refused = CliRunner().invoke(app, line).exception
    assert isinstance(refused, ConfigError) and "no folder /nowhere" in refused.message
