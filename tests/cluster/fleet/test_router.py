"""The choice among replicas: who is known, who is reached, who is taken."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from scripted import ScriptedEngine
from shoal.cluster.app import build
from shoal.cluster.channel import Channel
from shoal.cluster.link import ModelCard
from shoal.cluster.membership import Member, Membership
from shoal.cluster.router import FleetRouter
from shoal.engine.errors import ConfigError, EngineLost, UnknownModel
from shoal.engine.request import Request, SamplingParams

SECRET = b"s" * 32


def request(id: str, n: int = 1) -> Request:
    return Request(id=id, prompt=(1,), params=SamplingParams(n=n, seed=0))


def member(channel: Channel) -> Member:
    return Member(channel.replica, *channel.address)


@pytest.fixture
def channels(card: ModelCard):
    made = [
        Channel(ScriptedEngine(), replica=name, card=card, secret=SECRET, host="127.0.0.1")
        for name in ("r1", "r2")
    ]
    for channel in made:
        channel.start()
    yield made
    for channel in made:
        channel.close()


def routed(test: Callable, channels: list[Channel], until: Callable) -> None:
    """Run `test(router, members)` with a router that wants two replicas and knows of none yet."""

    async def main() -> None:
        members = Membership()
        router = FleetRouter(wanted=2, secret=SECRET, gateway="g")
        router.watch(members)
        await test(router, members)
        router.close()

    asyncio.run(main())


def test_its_status_follows_the_replicas(channels, until) -> None:
    async def test(router: FleetRouter, members: Membership) -> None:
        assert router.status() == "loading" and router.cards() == []
        with pytest.raises(EngineLost, match="loading"):
            router.choose("tiny", request("a"))
        members.publish((member(channels[0]),))
        await until(lambda: router.status() == "degraded")
        members.publish(tuple(map(member, channels)))
        await until(lambda: router.status() == "ready")
        assert [card.names for card in router.cards()] == [("tiny",)]
        channels[0].close()
        await until(lambda: router.status() == "degraded")
        members.publish((member(channels[1]),))
        members.publish(())
        await until(lambda: router.status() == "down" and not router.links())
        assert router.cards(), "a model stays known while its replicas are replaced"

    routed(test, channels, until)


def test_it_takes_the_least_loaded(channels, until) -> None:
    async def test(router: FleetRouter, members: Membership) -> None:
        members.publish(tuple(map(member, channels)))
        await until(lambda: router.status() == "ready")
        with pytest.raises(UnknownModel, match="other"):
            router.choose("other", request("a"))
        first = router.choose("tiny", request("a"))
        assert router.choose("tiny", request("a")) is not first
        first.submit(request("many", n=4), lambda update: None)
        for i in range(4):
            chosen = router.choose(None, request(f"b{i}"))
            assert chosen is not first
            chosen.submit(request(f"b{i}"), lambda update: None)
        assert {router.choose(None, request("c")) for _ in range(2)} == set(router.links())

    routed(test, channels, until)


def test_a_replica_that_serve_takes_away_finishes_what_it_has(channels, until) -> None:
    async def test(router: FleetRouter, members: Membership) -> None:
        members.publish((member(channels[0]),))
        await until(lambda: router.links())
        got: list = []
        router.choose("tiny", request("a")).submit(request("a"), got.append)
        await until(lambda: channels[0].num_live == 1)
        members.publish(())
        await until(lambda: router.status() == "down")
        for _ in range(16):
            channels[0].engine.step()
        await until(lambda: len(got) == 16 and not router.links())
        assert got[-1].finish is not None

    routed(test, channels, until)


def test_a_replica_that_cannot_be_reached_yet_is_tried_again(card, until) -> None:
    async def test(router: FleetRouter, members: Membership) -> None:
        channel = Channel(
            ScriptedEngine(), replica="late", card=card, secret=b"x" * 32, host="127.0.0.1"
        )
        channel.start()
        members.publish((member(channel),))
        await asyncio.sleep(0.05)
        assert not router.links()
        channel.secret = SECRET
        await until(lambda: router.links())
        channel.close()

    routed(test, [], until)


def test_build_takes_the_keys_of_serve() -> None:
    app = build({"model": "/models/tiny", "replicas": "2", "served-model-name": ["tiny"]})
    assert app._bound_deployment.name == "Gateway"
    with pytest.raises(ConfigError, match="replicas"):
        build({"replicsa": 2})
