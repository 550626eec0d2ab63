"""The choice among replicas: who is known, who is reached, who is taken."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from ray.serve import Application
from scripted import ScriptedEngine
from shoal.cluster.app import build
from shoal.cluster.channel import Channel
from shoal.cluster.config import ServeConfig
from shoal.cluster.membership import Member, Membership
from shoal.cluster.router import FleetRouter
from shoal.cluster.waker import Waker
from shoal.engine.errors import ConfigError, EngineLost, UnknownModel
from shoal.engine.request import Request, SamplingParams

SECRET = b"s" * 32


def request(id: str, n: int = 1) -> Request:
    return Request(id=id, prompt=(1,), params=SamplingParams(n=n, seed=0))


def member(channel: Channel) -> Member:
    return Member(channel.replica, channel.card.names[0], *channel.address)


def routed(test: Callable, channels: list[Channel], until: Callable) -> None:
    """Run `test(router, members)` with a router that wants two replicas and knows of none yet."""

    async def main() -> None:
        members = Membership()
        router = FleetRouter(wanted={("tiny",): 2}, secret=SECRET, gateway="g")
        router.watch(members)
        await test(router, members)
        router.close()

    asyncio.run(main())


def test_its_status_follows_the_replicas(channels, until) -> None:
    async def test(router: FleetRouter, members: Membership) -> None:
        assert router.status() == "loading" and router.cards() == []
        with pytest.raises(EngineLost, match="loading"):
            router.choose("tiny", request("a"))
        members.publish("tiny", (member(channels[0]),))
        await until(lambda: router.status() == "degraded")
        members.publish("tiny", tuple(map(member, channels)))
        await until(lambda: router.status() == "ready")
        assert [card.names for card in router.cards()] == [("tiny",)]
        channels[0].close()
        await until(lambda: router.status() == "degraded")
        members.publish("tiny", (member(channels[1]),))
        members.publish("tiny", ())
        await until(lambda: router.status() == "down" and not router.links())
        assert router.cards(), "a model stays known while its replicas are replaced"

    routed(test, channels, until)


def test_replicas_of_another_vocabulary_are_asked_in_their_own(channels, until) -> None:
    async def test(router: FleetRouter, members: Membership) -> None:
        members.publish("tiny", tuple(map(member, channels)))
        await until(lambda: router.status() == "ready")
        old, new = router.links()
        new.card = replace(new.card, tokenizer="/models/other")
        seen = {router.cards()[0].vocabulary for _ in range(200)}
        assert seen == {old.card.vocabulary, new.card.vocabulary}
        old.leaving = True
        assert router.cards() == [new.card]

    routed(test, channels, until)


def test_it_takes_the_least_loaded(channels, until) -> None:
    async def test(router: FleetRouter, members: Membership) -> None:
        members.publish("tiny", tuple(map(member, channels)))
        await until(lambda: router.status() == "ready")
        with pytest.raises(UnknownModel, match="other"):
            router.choose("other", request("a"))
        first = router.choose("tiny", request("a"))
        assert router.choose("tiny", request("a")) is not first
        first.submit(request("many", n=4), lambda update: None)
        for i in range(4):
            chosen = router.choose("tiny", request(f"b{i}"))
            assert chosen is not first
            chosen.submit(request(f"b{i}"), lambda update: None)
        assert {router.choose("tiny", request("c")) for _ in range(2)} == set(router.links())

    routed(test, channels, until)


def test_each_model_has_its_own_replicas_and_its_own_health(channels, card, until) -> None:
    other = replace(card, names=("other", "alias"))
    channels[1].card = other

    async def main() -> None:
        members = Membership()
        wanted = {("tiny",): 1, other.names: 1}
        router = FleetRouter(wanted=wanted, secret=SECRET, gateway="g")
        router.watch(members)
        members.publish("tiny", (member(channels[0]),))
        await until(lambda: router.statuses() == {"tiny": "ready", "other": "loading"})
        assert router.status() == "degraded"
        with pytest.raises(EngineLost, match=r"no replica of alias .* it is loading"):
            router.choose("alias", request("a"))
        members.publish("other", (member(channels[1]),))
        await until(lambda: router.status() == "ready")
        assert router.choose("alias", request("a")).card is not router.choose("tiny", request("b"))
        assert router.choose("alias", request("a")).card.names == other.names
        channels[0].close()
        members.publish("tiny", ())
        await until(lambda: router.statuses() == {"tiny": "down", "other": "ready"})
        assert router.choose("other", request("a")) is router.links()[0]
        router.close()

    asyncio.run(main())


def test_a_replica_that_serve_takes_away_finishes_what_it_has(channels, until) -> None:
    async def test(router: FleetRouter, members: Membership) -> None:
        members.publish("tiny", (member(channels[0]),))
        await until(lambda: router.links())
        got: list = []
        router.choose("tiny", request("a")).submit(request("a"), got.append)
        await until(lambda: channels[0].num_live == 1)
        members.publish("tiny", ())
        await until(lambda: router.status() == "down")
        for _ in range(16):
            channels[0].engine.step()
        await until(lambda: len(got) == 16 and not router.links())
        assert got[-1].finish is not None and router.ended(channels[0].replica) == "draining"

    routed(test, channels, until)


def test_a_sleeping_model_is_asked_for_by_what_waits_for_it(channels, until) -> None:
    asked = threading.Event()

    async def test(router: FleetRouter, members: Membership) -> None:
        router.may_sleep("tiny", Waker("tiny", asked.set, timeout_s=60, max_waiting=1))
        members.publish("tiny", (member(channels[0]),))
        await until(lambda: router.links())
        router.choose("tiny", request("a"))
        assert not asked.is_set()
        members.publish("tiny", ())
        await until(lambda: not router.links())
        with pytest.raises(EngineLost):
            router.choose("tiny", request("b"))
        await until(asked.is_set)

    routed(test, channels, until)


def test_a_replica_that_cannot_be_reached_yet_is_tried_again(card, until) -> None:
    async def test(router: FleetRouter, members: Membership) -> None:
        channel = Channel(
            ScriptedEngine(), replica="late", card=card, secret=b"x" * 32, host="127.0.0.1"
        )
        channel.start()
        members.publish("tiny", (member(channel),))
        await asyncio.sleep(0.05)
        assert not router.links()
        channel.secret = SECRET
        await until(lambda: router.links())
        channel.close()

    routed(test, [], until)


def test_build_takes_the_keys_of_serve() -> None:
    app = build({"model": "/models/tiny", "replicas": "2", "served-model-name": ["tiny"]})
    assert app._bound_deployment.name == "Gateway"
    assert [part.name for part in parts(app)] == ["tiny"]
    assert [part.num_replicas for part in parts(app)] == [2]
    with pytest.raises(ConfigError, match="replicas"):
        build({"replicsa": 2})


def test_every_model_is_a_deployment_that_knows_itself_alone() -> None:
    models = [{"model": "org/a b"}, {"model": "x/a-b"}, {"model": "/", "served_model_name": "ü"}]
    models.append({"model": "m", "served_model_name": "Gateway", "replicas": 3})
    found = parts(build({"models": models}))
    assert [part.name for part in found] == ["a-b", "a-b-2", "-", "Gateway-2"]
    told = [ServeConfig.model_validate(part.init_args[0]) for part in found]
    assert [config.models[0].engine.model for config in told] == ["org/a b", "x/a-b", "/", "m"]
    assert {config.models[0].engine.sharers for config in told} == {6}
    assert all(len(config.models) == 1 for config in told)


def parts(app: Application) -> list[Any]:
    """The deployments behind the gateways."""
    return [bound._bound_deployment for bound in app._bound_deployment.init_args[1:]]
