"""What is made of the events of a stream."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from shoal.cluster.bench import stream
from shoal.cluster.bench.arrivals import Level
from shoal.cluster.bench.stream import Record
from shoal.cluster.bench.talks import once
from shoal.cluster.bench.traffic import drive

DONE = b"[DONE]"


def asked(server: Any, *scripts: list[bytes], concurrency: int = 1) -> list[Record]:
    """The records of a request for each script, in their order."""
    server.scripts = list(scripts)
    talks = [once(b"{}") for _ in scripts]
    url = server.url + "/v1/completions"
    run = asyncio.run(drive(url, Level(concurrency=concurrency), talks, headers={}))
    return list(run.records)


def text(said: str, **more: Any) -> bytes:
    return json.dumps({"choices": [{"text": said, **more}]}).encode()


@pytest.mark.parametrize(
    "event",
    [
        b"{",
        b"\xff",
        b"[1]",
        b"7",
        b"[" * 100_000,
        b'{"choices": 1}',
        b'{"choices": ["x"]}',
    ],
)
def test_an_event_that_is_no_chunk_is_its_requests_error(server: Any, event: bytes) -> None:
    bad, good = asked(server, [text("a"), event, text("b"), DONE], [text("a"), DONE])
    assert bad.error is not None and "no chunk of an answer" in bad.error
    assert good.error is None and good.num_output == 1


def test_counts_that_are_none_are_not_taken(server: Any) -> None:
    usage = b'{"choices": [], "usage": {"prompt_tokens": "x", "prompt_tokens_details": [1]}}'
    (record,) = asked(server, [text("a"), usage, DONE])
    assert (record.error, record.num_prompt, record.num_cached) == (None, 0, 0)
    assert record.num_output == 1


def test_connections_serve_one_request_after_the_other(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "ENDING_S", 60.0)
    server.lingers = "a while"
    records = asked(server, *[[text("a"), DONE]] * 8, concurrency=2)
    assert [record.error for record in records] == [None] * 8
    assert len(server.peers) == 2


def test_an_answer_is_whole_without_the_end_of_its_message(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "ENDING_S", 0.01)
    server.lingers = "for ever"
    records = asked(server, [text("a"), DONE], [text("a"), DONE])
    assert [(record.error, record.num_output) for record in records] == [(None, 1)] * 2
    assert all(record.end - record.arrivals[-1] >= 0 for record in records)
