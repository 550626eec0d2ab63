"""Who comes in while a gateway drains."""

import asyncio
import json

import pytest
from shoal.cluster.turnstile import Turnstile

REFUSAL = {
    "error": {
        "message": "the server is shutting down; try again later",
        "type": "server_error",
        "param": None,
        "code": "shutting_down",
    }
}


@pytest.mark.parametrize(
    ("path", "said"), [("/v1/completions", REFUSAL), ("/health", {"status": "down", "models": {}})]
)
def test_once_closed_it_answers_503(path, said):
    sent = []

    async def send(message):
        sent.append(message)

    async def run():
        turnstile = Turnstile(None)
        assert await turnstile.drain(0)
        headers = [(b"host", b"a"), (b"x-request-id", b"mine")]
        await turnstile({"type": "http", "path": path, "headers": headers}, None, send)

    asyncio.run(run())
    start, body = sent
    headers = dict(start["headers"])
    assert start["status"] == 503
    assert int(headers[b"content-length"]) == len(body["body"])
    assert headers[b"retry-after"]
    assert headers[b"x-request-id"] == b"mine"
    assert json.loads(body["body"]) == said
