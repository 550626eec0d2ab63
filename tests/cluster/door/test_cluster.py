"""GET /cluster of a server without Ray, and an engine there that stands still."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time

import httpx2 as httpx

ROW = {"id", "model", "node", "pid", "state", "running", "waiting", "kv_usage", "ranks"}


def test_a_server_without_ray_tells_of_its_engine(served):
    served.complete()
    told = httpx.get(f"{served.url}/cluster").json()
    assert set(told) == {"replicas", "gateways"}
    (row,) = told["replicas"]
    assert set(row) == ROW
    assert (row["model"], row["state"], row["pid"]) == ("m", "ready", os.getpid())
    (rank,) = row["ranks"]
    assert set(rank) == {"rank", "node", "pid", "device", "last_step_s"}
    assert (rank["rank"], rank["node"], rank["pid"]) == (0, row["node"], os.getpid())
    assert rank["device"] == "cpu" and rank["last_step_s"] >= 0
    assert told["gateways"] == [{"node": row["node"], "pid": os.getpid(), "streams": 0}]


def test_there_is_no_node_to_drain(served):
    answer = httpx.post(f"{served.url}/cluster/drain", json={"node": "here"})
    assert answer.status_code == 400
    assert "without Ray" in answer.json()["error"]["message"]


@contextlib.contextmanager
def stuck(served, monkeypatch):
    """A request whose step hangs, once its engine is found to be stalled; afterwards it gets on."""
    (link,) = served.router.engines()
    monkeypatch.setattr(link._stall, "_timeout_s", 0.2)
    rank = served.engine.executor._rank
    gate, inside, run = threading.Event(), threading.Event(), rank.run

    def hang(plan):
        inside.set()
        gate.wait(60)
        return run(plan)

    monkeypatch.setattr(rank, "run", hang)
    answers = []

    def ask():
        answers.append(httpx.post(f"{served.url}/v1/completions", json=BODY, timeout=60))

    asked = threading.Thread(target=ask)
    asked.start()
    try:
        assert inside.wait(60)
        until = time.monotonic() + 60
        while not link.stalled and time.monotonic() < until:
            link.watch()
            time.sleep(0.02)
        assert "no progress for" in link.stalled
        yield asked, answers
    finally:
        gate.set()
        while link.stalled:
            link.watch()
            time.sleep(0.02)
        asked.join(60)


def test_an_engine_that_stands_still_is_stalled_until_it_gets_on(served, monkeypatch):
    """The rank's thread hangs in a step; a look at the engine says so, and /health too."""
    with stuck(served, monkeypatch) as (_, answers):
        health = httpx.get(f"{served.url}/health")
        assert (health.status_code, health.json()["status"]) == (503, "down")
        (row,) = httpx.get(f"{served.url}/cluster").json()["replicas"]
        assert row["state"] == "stalled"
        refused = httpx.post(f"{served.url}/v1/completions", json=BODY)
        assert (refused.status_code, "retry-after" in refused.headers) == (503, True)
    assert answers[0].status_code == 200  # it went on where it was
    assert httpx.get(f"{served.url}/health").json()["status"] == "ready"
    assert served.complete().choices[0].text


def test_a_stalled_engine_takes_nothing_once_its_streams_hear_of_it(served, monkeypatch):
    (link,) = served.router.engines()
    told = []

    class Loop:
        def call_soon_threadsafe(self, *work):
            told.append(link.alive)

    with monkeypatch.context() as patched:
        patched.setattr(link, "_loop", Loop())
        patched.setattr(link._stall, "look", lambda load: "no progress")
        link.watch()
        link.watch()
    assert told == [False]
    link.watch()
    assert link.alive


class Eager:
    """An event loop that does at once what other threads ask of it."""

    def __init__(self, loop):
        self._loop = loop

    def __getattr__(self, name):
        return getattr(self._loop, name)

    def call_soon_threadsafe(self, call, *args):
        async def done():
            call(*args)
            for _ in range(8):
                await asyncio.sleep(0)

        asyncio.run_coroutine_threadsafe(done(), self._loop).result(60)


def test_who_waits_for_an_engine_that_stays_stuck_is_told(model_folder, serve_model, monkeypatch):
    with (
        serve_model(model=model_folder, failover_timeout=0.3) as served,
        monkeypatch.context() as patched,
    ):
        (link,) = served.router.engines()
        patched.setattr(link, "_loop", Eager(link._loop))
        with stuck(served, patched) as (asked, answers):
            asked.join(60)
        (answer,) = answers
        assert answer.status_code == 503
        message = answer.json()["error"]["message"]
        assert "the engine is stuck" in message and "took it over within" in message


BODY = {"model": "m", "prompt": "the quick", "max_tokens": 4}
