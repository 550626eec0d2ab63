"""An engine that counts, and a door of a few lines: all of shoal's Ray side but the model.

`python scripted.py KEY=VALUE ...` serves them, with `door=real` behind shoal's own door. Ray's
workers find this module by PYTHONPATH.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qsl

from shoal.cluster.census import Census
from shoal.cluster.config import ModelConfig
from shoal.cluster.ingress import Ingress
from shoal.cluster.link import Load, Router
from shoal.cluster.pool import Pool
from shoal.cluster.replica import Replica
from shoal.engine.errors import ConfigError, EngineLost, InvalidRequest, Overloaded, ShoalError
from shoal.engine.executor import Capacity
from shoal.engine.holdings import Holdings
from shoal.engine.request import FinishReason, Request, SamplingParams, Update

DEADLY = 666
"""Whoever asks for this many numbers kills the engine."""

POISON = 668
"""Whoever asks for this many kills the engine before it has a token."""

HANGING = 667
"""Whoever asks for this many makes the engine's thread stand still."""


class ScriptedEngine:
    """Gives every sequence the tokens 0, 1, 2, ... one a step, up to `max_tokens` of them.

    `told` is said of its load besides; `digest` stands for its weights.
    With `step_s` None a step is made by `step()`, else by a thread.
    """

    def __init__(self, step_s: float | None = None, digest: str = "scripted") -> None:
        self.digest = digest
        self.live: dict[tuple[str, int], tuple[int, Request, Callable]] = {}
        self.aborted: list[tuple[str, int | None]] = []
        self.lock = threading.Lock()
        self.full = self.dead = False
        self.loss: type[EngineLost] = EngineLost
        self.holdings = Holdings(8)
        self.told: dict[str, Any] = {}
        self.num_steps = 0
        self.closed = threading.Event()
        if step_s is not None:
            threading.Thread(target=self._run, args=(step_s,), daemon=True).start()

    def start(self) -> Capacity:
        return Capacity(
            groups=(),
            num_blocks=(),
            block_size=16,
            max_model_len=200_000,
            step_tokens=512,
            vocab_size=1000,
            eos_token_ids=frozenset(),
            dtype="float32",
            device="cpu",
            digest=self.digest,
            table=(("Tokens", "counted"),),
            phases=(("nothing", 0.0),),
        )

    def submit(self, request: Request, sink: Callable[[list[Update]], None]) -> None:
        if self.full:
            raise Overloaded("the queue is full", 3.0)
        if not request.prompt:
            raise InvalidRequest("prompt is empty", "prompt")
        with self.lock:
            for i in range(request.params.n):
                self.live[request.id, request.sibling + i] = (len(request.emitted), request, sink)

    def abort(
        self,
        request_id: str,
        sibling: int | None = None,
        reason: FinishReason = FinishReason.ABORT,
    ) -> None:
        with self.lock:
            self.aborted.append((request_id, sibling))
            for key in [k for k in self.live if k[0] == request_id and sibling in (None, k[1])]:
                del self.live[key]

    def load(self) -> Load:
        if self.dead:
            raise self.loss("the script said so")
        counters = {"aborted": float(len(self.aborted))}
        load = Load(
            running=len(self.live),
            kv_usage=len(self.live) / 100,
            counters=counters,
            ticks=self.num_steps,
        )
        return replace(load, **self.told)

    def die(self) -> None:
        """As an engine whose loop raised: its streams are told, and nothing runs any more."""
        self.closed.set()
        self.dead = True
        for key, (_, request, sink) in self.live.items():
            sink([Update(*key, finish=FinishReason.ERROR, error="died", epoch=request.epoch)])

    def step(self) -> None:
        if any(request.params.max_tokens == POISON for _, request, _ in self.live.values()):
            self.die()
            return
        sinks: dict[Callable, list[Update]] = {}
        with self.lock:
            for key, (done, request, sink) in list(self.live.items()):
                last = done + 1 == (request.params.max_tokens or 16)
                finish = FinishReason.LENGTH if last else None
                update = Update(*key, tokens=(done,), finish=finish, epoch=request.epoch)
                sinks.setdefault(sink, []).append(update)
                self.live[key] = (done + 1, request, sink)
                if last:
                    del self.live[key]
        for sink, updates in sinks.items():
            sink(updates)
        if any(request.params.max_tokens == DEADLY for _, request, _ in self.live.values()):
            self.die()
        if any(request.params.max_tokens == HANGING for _, request, _ in self.live.values()):
            self.hang()
        self.num_steps += 1

    def hang(self) -> None:
        threading.Event().wait()

    def close(self) -> None:
        self.closed.set()

    def _run(self, step_s: float) -> None:
        while not self.closed.wait(step_s):
            self.step()


class ScriptedReplica(Replica):
    """A replica whose engine counts. A dtype of bfloat16 makes its start fail; each other one makes
    weights of its own.
    """

    def make_engine(self, model: ModelConfig) -> Any:
        if model.engine.dtype == "bfloat16":
            raise ConfigError("the model needs 9 GB and 3 GB are free; try --dtype half", "dtype")
        return ScriptedEngine(step_s=0.005, digest=f"scripted {model.engine.dtype}")


class ScriptedIngress(Ingress):
    """A gateway that streams `?n=` numbers, a line each, after the pid of its own process."""

    def make_app(self, router: Router, pool: Pool, census: Census) -> Any:
        return Counter(router, census)


class Left(ShoalError):
    """The client hung up."""


class Counter:
    def __init__(self, router: Router, census: Census) -> None:
        self.router = router
        self.census = census
        self.ids = iter(range(1 << 60))

    def stop(self) -> None:
        pass

    def serve_only(self, versions: Any) -> None:
        pass

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            raise RuntimeError("no lifespan")
        if scope["path"] == "/health":
            loads = {link.replica: link.load.running for link in self.router.links()}
            aborted = sum(link.load.counters["aborted"] for link in self.router.links())
            body = {"status": self.router.status(), "pid": os.getpid(), "loads": loads}
            await answer(send, 200, json.dumps(body | {"aborted": aborted}).encode())
            return
        if scope["path"] == "/cluster":
            own = sum(link.num_live for link in self.router.links())
            overview = await self.census.overview(own)
            await answer(send, 200, json.dumps(overview | {"pid": os.getpid()}).encode())
            return
        if scope["path"] == "/cluster/drain":
            node = dict(parse_qsl(scope["query_string"].decode()))["node"]
            try:
                body, status = await self.census.registry.drain(node), 200
            except ShoalError as error:
                body, status = {"error": error.message}, 400
            await answer(send, status, json.dumps(body).encode())
            return
        asked = dict(parse_qsl(scope["query_string"].decode()))
        model = asked.get("model", next(iter(self.router.statuses())))
        await self.count(model, asked["n"], receive, send)

    async def count(self, model: str, n: str, receive: Any, send: Any) -> None:
        request = Request(
            id=f"{os.getpid()}-{next(self.ids)}",
            prompt=(1,),
            params=SamplingParams(max_tokens=int(n), seed=0),
        )
        updates: asyncio.Queue[Update | ShoalError] = asyncio.Queue()
        try:
            await self.router.awake(model)
            link = self.router.choose(model, request)
        except EngineLost as error:
            await answer(send, 503, error.message.encode())
            return
        link.submit(request, updates.put_nowait)
        listening = asyncio.create_task(self.listen(receive, updates))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        line = f"replica {link.replica}\n".encode()
        try:
            while True:
                await send({"type": "http.response.body", "body": line, "more_body": True})
                update = await updates.get()
                if isinstance(update, ShoalError):
                    line = f"{type(update).__name__}: {update}\n".encode()
                    break
                line = f"{update.tokens[0] if update.tokens else update.error}\n".encode()
                if update.finish:
                    break
        except asyncio.CancelledError:
            link.abort(request.id)
            raise
        finally:
            listening.cancel()
        if isinstance(update, Left):
            link.abort(request.id)
        await send({"type": "http.response.body", "body": line})

    async def listen(self, receive: Any, updates: asyncio.Queue[Update | ShoalError]) -> None:
        """Ends a stream whose client hangs up."""
        while (await receive())["type"] != "http.disconnect":
            pass
        updates.put_nowait(Left("the client has left"))


async def answer(send: Any, status: int, body: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": body})


def build(args: dict[str, Any]) -> Any:
    """The application for `serve deploy`, of engines that count behind shoal's own door."""
    import scripted
    from shoal.cluster.app import application
    from shoal.cluster.room import Room
    from shoal.cluster.settings import serve_config

    if args.pop("room", None) == "pretended":
        Room.take = lambda self, bundles: True
    return application(serve_config(args), replica=scripted.ScriptedReplica)


if __name__ == "__main__":
    import scripted
    from shoal.cluster.app import run
    from shoal.cluster.settings import serve_config

    keys: dict[str, Any] = dict(word.split("=", 1) for word in sys.argv[1:])
    ingress = Ingress if keys.pop("door", None) == "real" else scripted.ScriptedIngress
    if keys.pop("room", None) == "pretended":
        from shoal.cluster.room import Room

        Room.take = lambda self, bundles: True
    if "models" in keys:
        keys["models"] = json.loads(keys["models"])
        del keys["model"]
    try:
        run(
            serve_config(keys),
            replica=scripted.ScriptedReplica,
            ingress=ingress,
        )
    except ShoalError as error:
        sys.exit(f"error: {type(error).__name__}: {error}")
