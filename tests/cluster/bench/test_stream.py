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


def test_the_last_line_may_lack_its_end(server: Any) -> None:
    server.tail = b""
    whole, cut = asked(server, [text("a"), text("b"), DONE], [text("a"), text("b")[:9]])
    assert (whole.error, whole.num_output) == (None, 2)
    assert whole.end >= whole.arrivals[-1]
    assert cut.error == "the stream ended without [DONE]"


def delta(said: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({"choices": [{"delta": said, **more}]}).encode()


def usage(tokens: int) -> bytes:
    return json.dumps({"choices": [], "usage": {"completion_tokens": tokens}}).encode()


ROLE = delta({"role": "assistant", "content": ""})
END = delta({}, finish_reason="stop")


@pytest.mark.parametrize(
    "first",
    [
        {"role": "assistant", "content": "a"},
        {"role": "assistant", "content": None, "reasoning_content": "hm"},
        {"role": "assistant", "content": "", "reasoning": "hm"},
        {"role": "assistant", "content": None, "tool_calls": [{"index": 0}]},
        {"content": ""},
        {},
    ],
)
def test_the_first_token_is_the_first_output(server: Any, first: dict[str, Any]) -> None:
    (record,) = asked(server, [ROLE, delta(first), delta({"content": "b"}), END, DONE])
    assert record.error is None and len(record.arrivals) == record.num_output == 2


def test_an_end_alone_is_no_token(server: Any) -> None:
    told, chat = asked(
        server,
        [text("a"), text("b"), text("", finish_reason="length"), DONE],
        [ROLE, delta({"content": "a"}), delta({"content": "b"}), END, DONE],
    )
    assert [len(told.arrivals), len(chat.arrivals)] == [2, 2]
    assert [told.num_output, chat.num_output] == [2, 2]


def test_a_last_token_without_text_came_with_the_end(server: Any) -> None:
    (record,) = asked(server, [ROLE, delta({"content": "a"}), END, usage(2), DONE])
    assert (len(record.arrivals), record.num_output) == (2, 2)
    assert record.arrivals == sorted(record.arrivals)


def test_an_answer_without_output_failed(server: Any) -> None:
    (record,) = asked(server, [ROLE, END, DONE])
    assert record.error == "the answer has no output"
