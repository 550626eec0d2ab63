"""Gateways that tell each other their figures, over real sockets; only Ray's store is a dict."""

import asyncio
import base64
import json
import socket
import threading

import pytest
from shoal.cluster import catalog, peers
from shoal.cluster.peers import Peers, Told
from shoal.cluster.pool import Pool

SECRET = b"s" * 32


class Store:
    """The facts of an application; with `away` set, asking for them hangs."""

    def __init__(self):
        self.facts = {}
        self.away = threading.Event()
        self.back = threading.Event()

    def put(self, kind, key, fact):
        self.facts[kind, key] = json.loads(json.dumps(fact, default=as_base64))

    def all(self, kind):
        if self.away.is_set():
            self.back.wait(60)
        return {key: fact for (k, key), fact in self.facts.items() if k == kind}

    def remove(self, kind, key):
        del self.facts[kind, key]


def as_base64(value):
    """As msgspec encodes bytes."""
    return base64.b64encode(value).decode()


class Alone:
    """A router without replicas."""

    def links(self):
        return []


@pytest.fixture
def store():
    store = Store()
    yield store
    store.back.set()


def gateway(name, store, secret=SECRET, count=0):
    pool = Pool(Alone(), name)
    for _ in range(count):
        pool.metrics.answered("/", "GET", 200, 0.1)
    return pool, Peers(pool, store, secret, name)


def counted(pool):
    """How many requests the pool knows of, once it has asked the others."""
    totals = asyncio.run(pool.totals())
    return sum(values[0] for (name, _), values in totals.items() if name == catalog.HTTP.name)


def test_what_a_peer_has_counted_is_asked_for(store, serve_app):
    (own, _), (other, _) = gateway("a", store, count=1), gateway("b", store, count=2)
    with serve_app(Told(None, other, SECRET)) as (port, _):
        store.put("gateway", "b", {"host": "127.0.0.1", "port": port, "pid": 1})
        store.put("gateway", "a", {"host": "127.0.0.1", "port": 1, "pid": 1})
        store.put("gateway", "early", {"pid": 1})
        assert counted(own) == 3
        other.metrics.answered("/", "GET", 200, 0.1)
        assert counted(own) == 4
    assert counted(own) == 4, "it has gone, and is not forgotten"


def test_a_stranger_is_neither_told_nor_believed(store, serve_app):
    (own, _), (stranger, _) = gateway("a", store), gateway("b", store, count=5)
    with serve_app(Told(None, stranger, b"x" * 32)) as (port, _):
        store.put("gateway", "b", {"host": "127.0.0.1", "port": port})
        assert counted(own) == 0

    async def liar(scope, receive, send):
        start = {"type": "http.response.start", "status": 200, "headers": []}
        await send(start)
        await send({"type": "http.response.body", "body": stranger.record()})

    with serve_app(liar) as (port, _):
        store.put("gateway", "c", {"host": "127.0.0.1", "port": port})
        assert counted(own) == 0


def test_a_peer_that_does_not_answer_holds_nobody_up(store, serve_app, monkeypatch):
    monkeypatch.setattr(peers, "ASK_S", 0.2)
    (own, _), (other, _) = gateway("a", store, count=1), gateway("b", store, count=2)
    with (
        socket.create_server(("127.0.0.1", 0)) as deaf,
        serve_app(Told(None, other, SECRET)) as (port, _),
    ):
        store.put("gateway", "deaf", {"host": "127.0.0.1", "port": deaf.getsockname()[1]})
        store.put("gateway", "b", {"host": "127.0.0.1", "port": port})
        assert counted(own) == 3


def test_while_rays_head_is_away_those_known_are_asked(store, serve_app):
    (own, _), (other, _) = gateway("a", store), gateway("b", store, count=2)

    async def run():
        await own.totals()
        store.away.set()
        other.metrics.answered("/", "GET", 200, 0.1)
        totals = await own.totals()
        store.back.set()
        return totals

    with serve_app(Told(None, other, SECRET)) as (port, _):
        store.put("gateway", "b", {"host": "127.0.0.1", "port": port})
        totals = asyncio.run(run())
    assert totals[catalog.HTTP.name, ("/", "GET", "200")] == [3]


def test_what_a_gateway_knew_outlives_it(store):
    _, its = gateway("a", store, count=3)
    asyncio.run(its.leave())
    second, its = gateway("b", store, count=1)
    assert counted(second) == 4
    asyncio.run(its.leave())
    left = [key for kind, key in store.facts if kind == peers.LEFT]
    assert left == ["b"], "the last one's word holds that of all before it"
    third, _ = gateway("c", store)
    assert counted(third) == 4
