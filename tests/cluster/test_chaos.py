"""What `shoal bench chaos` counts as the same, and its report."""

from __future__ import annotations

import asyncio
import json
import os

import pytest
from shoal.cluster.chaos import Fault, summary, table
from shoal.cluster.chaos_faults import FAULTS, Processes, named
from shoal.cluster.chaos_streams import AGAIN_S, Told, bodies, tell_all
from shoal.cluster.ports import free_port
from shoal.engine.errors import ConfigError


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
