"""Who comes in while a gateway drains."""

import asyncio
import json

from shoal.cluster.turnstile import Turnstile


def test_once_closed_it_answers_with_an_error_object():
    sent = []

    async def send(message):
        sent.append(message)

    async def run():
        turnstile = Turnstile(None)
        assert await turnstile.drain(0)
        await turnstile({"type": "http"}, None, send)

    asyncio.run(run())
    start, body = sent
    headers = dict(start["headers"])
    assert start["status"] == 503
    assert int(headers[b"content-length"]) == len(body["body"])
    assert headers[b"retry-after"]
    assert json.loads(body["body"])["error"] == {
        "message": "the server is shutting down; try again later",
        "type": "server_error",
        "param": None,
        "code": "shutting_down",
    }
