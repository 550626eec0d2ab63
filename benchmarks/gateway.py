"""What a gateway costs: CPU and bytes a streamed token, detokenizing included, and a request.

    python benchmarks/gateway.py [--streams 1,32,256,1000] [--output-len 128] [--json FILE]

A process of its own is the gateway of the bundled model, with the web server, router and sockets
that `shoal serve` gives it. Another is the replica: an engine without a model, which brings every
stream a token each `--step-ms`. This one is the client. CPU is what the kernel has counted for the
gateway's process, all threads, while the streams ran.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MODEL = "shoal-tiny"
PROMPT = "The tide went out and left the pools behind, each with a crab or two. " * 4
KINDS = {"chat": "/v1/chat/completions", "completion": "/v1/completions"}


def main() -> None:
    chosen = arguments()
    if chosen.role == "engine":
        engine_process(chosen)
    elif chosen.role == "gateway":
        from shoal.cluster.web import loop_factory

        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(gateway_process(chosen))
    else:
        asyncio.run(client(chosen))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--streams", default="1,32,256,1000")
    parser.add_argument("--output-len", type=int, default=128)
    parser.add_argument("--step-ms", type=float, default=20.0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--role", help=argparse.SUPPRESS)
    parser.add_argument("--engine", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


# The replica.


class PacedEngine:
    """Brings every live sequence one token each `step_s`, from a text's tokens in a circle."""

    def __init__(self, step_s: float, tokens: list[int]) -> None:
        from shoal.engine.holdings import Holdings

        self.holdings = Holdings(8)
        self._live: dict[str, tuple[Any, int, Callable[[list[Any]], None]]] = {}
        self._lock = threading.Lock()
        self._tokens = tokens
        threading.Thread(target=self._run, args=(step_s,), daemon=True).start()

    def submit(self, request: Any, sink: Callable[[list[Any]], None]) -> None:
        with self._lock:
            self._live[request.id] = (request, 0, sink)

    def abort(self, request_id: str, sibling: int | None = None, reason: Any = None) -> None:
        with self._lock:
            self._live.pop(request_id, None)

    def load(self) -> Any:
        from shoal.engine.request import Load

        return Load(running=len(self._live))

    def _run(self, step_s: float) -> None:
        due = time.monotonic()
        while True:
            due = max(due + step_s, time.monotonic())
            time.sleep(max(0.0, due - time.monotonic()))
            self._step()

    def _step(self) -> None:
        from shoal.engine.request import FinishReason, Update

        batches: dict[Callable[[list[Any]], None], list[Any]] = {}
        with self._lock:
            for id, (request, done, sink) in [*self._live.items()]:
                last = done + 1 >= request.params.max_tokens
                token = self._tokens[(request.params.seed + done) % len(self._tokens)]
                cached = None if done else 0
                finish = FinishReason.LENGTH if last else None
                update = Update(id, 0, (token,), num_cached=cached, finish=finish)
                batches.setdefault(sink, []).append(update)
                self._live[id] = (request, done + 1, sink)
                if last:
                    del self._live[id]
        for sink, updates in batches.items():
            sink(updates)


def engine_process(chosen: argparse.Namespace) -> None:
    from shoal.cluster.channel import Channel
    from shoal.cluster.link import ModelCard
    from shoal.cluster.settings import serve_config
    from shoal.engine.text import Tokenizer

    (model,) = serve_config({"model": MODEL}).models
    tokenizer = Tokenizer.load(model.engine.model)
    card = ModelCard(
        names=(MODEL,),
        model=model.engine.model,
        tokenizer=model.engine.model,
        max_model_len=2048,
        vocab_size=tokenizer.vocab_size,
        max_logprobs=20,
        eos_token_ids=(),
        sampling_defaults={},
        digest="none",
        created=0,
        cache={},
        block_size=16,
    )
    channel = Channel(
        PacedEngine(chosen.step_ms / 1000, tokenizer.encode(PROMPT)),
        replica="paced",
        card=card,
        secret=bytes.fromhex(os.environ["LINK_SECRET"]),
        host="127.0.0.1",
    )
    channel.start()
    print(channel.address[1], flush=True)
    sys.stdin.read()


# The gateway.


async def gateway_process(chosen: argparse.Namespace) -> None:
    import uvicorn
    from shoal.cluster.gateway import build_gateway
    from shoal.cluster.membership import Member, Membership
    from shoal.cluster.open_files import lift_limit
    from shoal.cluster.router import FleetRouter
    from shoal.cluster.settings import serve_config
    from shoal.cluster.turnstile import Turnstile
    from shoal.cluster.web import web_config

    lift_limit()
    config = serve_config({"model": MODEL})
    secret = bytes.fromhex(os.environ["LINK_SECRET"])
    router = FleetRouter(wanted={(MODEL,): 1}, secret=secret, gateway="measured")
    members = Membership()
    router.watch(members)
    members.publish("paced", (Member("paced", MODEL, "127.0.0.1", chosen.engine),))
    door = Turnstile(build_gateway(config, router))
    server = uvicorn.Server(web_config(config, door, lifespan="off"))
    bound = socket.create_server(("127.0.0.1", 0), backlog=2048)
    serving = asyncio.create_task(server.serve([bound]))
    while not (server.started and router.links()):
        await asyncio.sleep(0.01)
    print(bound.getsockname()[1], flush=True)
    await serving


# The client.


def begin(role: str, chosen: argparse.Namespace, **given: object) -> tuple[Any, int]:
    """A process of `role`, and the port that it listens on."""
    command = [sys.executable, __file__, "--role", role, "--step-ms", str(chosen.step_ms)]
    command += [word for name, value in given.items() for word in (f"--{name}", str(value))]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def cpu_s(pid: int) -> float:
    """CPU seconds of a process's living threads."""
    tasks = Path(f"/proc/{pid}/task")
    return sum(int((t / "schedstat").read_text().split()[0]) for t in tasks.iterdir()) / 1e9


async def stream(port: int, kind: str, body: bytes) -> int:
    """Run one stream to its end; the bytes that came."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    head = f"POST {KINDS[kind]} HTTP/1.1\r\nHost: here\r\nConnection: close\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    num, tail = 0, b""
    while data := await reader.read(1 << 16):
        num += len(data)
        tail = (tail + data)[-64:]
    writer.close()
    assert b"data: [DONE]" in tail, tail
    return num


def body_of(kind: str, number: int, output_len: int) -> bytes:
    asked: dict[str, Any] = {"max_tokens": output_len, "stream": True, "seed": number}
    asked["stream_options"] = {"include_usage": True}
    if kind == "chat":
        asked["messages"] = [{"role": "user", "content": f"{number} {PROMPT}"}]
    else:
        asked["prompt"] = f"{number} {PROMPT}"
    return json.dumps(asked).encode()


async def level(pid: int, port: int, kind: str, num: int, output_len: int) -> dict[str, Any]:
    """`num` streams at once: what a token cost, and what a request cost beside its tokens."""
    costs = []
    for length in (1, output_len):
        bodies = [body_of(kind, number, length) for number in range(num)]
        before, begun = cpu_s(pid), time.monotonic()
        sizes = await asyncio.gather(*(stream(port, kind, body) for body in bodies))
        costs.append((cpu_s(pid) - before, sum(sizes), time.monotonic() - begun))
    (one_cpu, one_bytes, _), (all_cpu, all_bytes, seconds) = costs
    more = num * (output_len - 1)
    return {
        "kind": kind,
        "streams": num,
        "tokens_per_s": num * output_len / seconds,
        "cpu_us_per_token": 1e6 * (all_cpu - one_cpu) / more,
        "cpu_us_per_token_with_requests": 1e6 * all_cpu / (num * output_len),
        "cpu_us_per_request": 1e6 * one_cpu / num,
        "bytes_per_token": (all_bytes - one_bytes) / more,
    }


async def client(chosen: argparse.Namespace) -> None:
    os.environ["LINK_SECRET"] = secrets.token_hex(32)
    engine, engine_port = begin("engine", chosen)
    gateway, port = begin("gateway", chosen, engine=engine_port)
    found = []
    try:
        for kind in KINDS:
            await level(gateway.pid, port, kind, 4, 16)  # what happens once
            for num in map(int, chosen.streams.split(",")):
                found.append(await level(gateway.pid, port, kind, num, chosen.output_len))
                report(found[-1])
    finally:
        for process in (gateway, engine):
            process.terminate()
            process.wait(30)
    if chosen.json is not None:
        chosen.json.write_text(json.dumps({"command": sys.argv, "levels": found}, indent=1) + "\n")


def report(found: dict[str, Any]) -> None:
    print(
        f"{found['kind']:10}  {found['streams']:5} streams  {found['tokens_per_s']:8.0f} tokens/s  "
        f"{found['cpu_us_per_token']:6.1f} us a token "
        f"({found['cpu_us_per_token_with_requests']:.1f} with requests)  "
        f"{found['cpu_us_per_request']:7.0f} us a request  "
        f"{found['bytes_per_token']:6.1f} bytes a token",
        flush=True,
    )


if __name__ == "__main__":
    main()
