"""A server whose answers are known."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any, Literal

import pytest
from aiohttp import web


class Server:
    """Streams `max_tokens` chunks; remembers bodies and how many were served at once.

    `paths` are of all that it was asked. Every `fail_every`-th request is refused, every
    `break_every`-th one broken off. `scripts`, where there are any, are the events of the answers
    in turn, and `tail` what follows the last of them. Where `lingers`, the end of HTTP's message
    comes after the answer, or not at all. Where it `hangs_up`, no answer begins.
    `peers` are the connections that requests came on. `before` is told the number of each request.
    `gauges_fail` are the numbers of the readings of its gauges that it refuses.
    """

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self.detokenizes = self.takes_ids = self.takes_ignore_eos = True
        self.routes = {"/v1/completions", "/v1/chat/completions"}
        self.at_once = self.most_at_once = 0
        self.fail_every = self.break_every = 0
        self.hangs_up = False
        self.before: Callable[[int], object] = lambda number: None
        self.models_status = 200
        self.card: dict[str, Any] = {"id": "fake", "vocab_size": 300}
        self.gauges = ""
        self.gauges_fail: set[int] = set()
        self.num_readings = 0
        self.tells_usage = True
        self.scripts: list[list[bytes]] = []
        self.tail = b"\n\n"
        self.lingers: Literal["", "a while", "for ever"] = ""
        self.peers: set[Any] = set()
        self.loop = asyncio.new_event_loop()
        self.url = ""

    async def start(self) -> None:
        app = web.Application()
        app.router.add_get("/v1/models", self.models)
        app.router.add_post("/v1/completions", self.answer)
        app.router.add_post("/v1/chat/completions", self.answer)
        app.router.add_post("/detokenize", self.detokenize)
        app.router.add_get("/metrics", self.metrics)
        self.runner = web.AppRunner(app)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", 0)
        await site.start()
        assert site._server is not None
        self.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"

    async def models(self, _: web.Request) -> web.Response:
        return web.json_response({"data": [self.card]}, status=self.models_status)

    async def detokenize(self, request: web.Request) -> web.Response:
        self.paths.append(request.path)
        if not self.detokenizes:
            raise web.HTTPNotFound()
        ids = (await request.json())["tokens"]
        return web.json_response({"prompt": " ".join(map(str, ids))})

    async def metrics(self, _: web.Request) -> web.Response:
        self.num_readings += 1
        if self.num_readings in self.gauges_fail:
            raise web.HTTPServiceUnavailable()
        return web.Response(text=self.gauges)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.paths.append(request.path)
        self.bodies.append(body)
        assert request.transport is not None
        self.peers.add(request.transport.get_extra_info("peername"))
        self.before(len(self.bodies))
        if self.hangs_up:
            request.transport.abort()
        if said := self.refusal(request.path, body):
            status = 400 if request.path in self.routes else 404
            return web.json_response({"error": {"message": said}}, status=status)
        number = len(self.bodies)
        if self.fail_every and number % self.fail_every == 0:
            return web.json_response({"error": {"message": "too busy"}}, status=429)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            return await self.stream(request, body, number)
        finally:
            self.at_once -= 1

    def refusal(self, path: str, body: dict[str, Any]) -> str | None:
        if path not in self.routes:
            return "no such route"
        if not self.takes_ids and isinstance(body.get("prompt"), list):
            return "prompt must be a string"
        if not self.takes_ignore_eos and "ignore_eos" in body:
            return "unknown field ignore_eos"
        return None

    async def stream(
        self, request: web.Request, body: dict[str, Any], number: int
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)

        async def send(chunk: dict[str, Any]) -> None:
            await response.write(b"data: %s\n\n" % json.dumps(chunk).encode())

        if self.scripts:
            *events, last = self.scripts[(number - 1) % len(self.scripts)]
            for event in events:
                await response.write(b"data: %b\n\n" % event)
            await response.write(b"data: %b%b" % (last, self.tail))
            await self.linger(request)
            return response

        chat = "messages" in body
        if chat:
            await send({"choices": [{"delta": {"role": "assistant", "content": ""}}]})
        for _ in range(body["max_tokens"]):
            await asyncio.sleep(0.001)
            await send({"choices": [{"delta": {"content": "x"}} if chat else {"text": "x"}]})
            if self.break_every and number % self.break_every == 0:
                return response
        usage = {"prompt_tokens": 7, "completion_tokens": body["max_tokens"]}
        if self.tells_usage:
            await send({"choices": [], "usage": usage})
        await response.write(b"data: [DONE]\n\n")
        return response

    async def linger(self, request: web.Request) -> None:
        if self.lingers == "a while":
            await asyncio.sleep(0.01)
        while self.lingers == "for ever" and request.transport is not None:
            await asyncio.sleep(0.005)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    server.loop.run_until_complete(server.start())
    thread = threading.Thread(target=server.loop.run_forever)
    thread.start()
    yield server
    asyncio.run_coroutine_threadsafe(server.runner.cleanup(), server.loop).result()
    server.loop.call_soon_threadsafe(server.loop.stop)
    thread.join()
    server.loop.close()
