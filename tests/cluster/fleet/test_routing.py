"""The choice over real links: what replicas tell of their caches and queues decides."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest
from shoal.cluster.channel import Channel
from shoal.cluster.link import ModelCard
from shoal.cluster.membership import Member, Membership
from shoal.cluster.prefixes import prompt_keys
from shoal.cluster.remote import RemoteLink
from shoal.cluster.router import FleetRouter
from shoal.engine.errors import Overloaded
from shoal.engine.request import Request, SamplingParams

SECRET = b"s" * 32
BLOCK = 16
NUMBERS = itertools.count()


def request(prompt: tuple[int, ...], session: str = "", salt: str = "") -> Request:
    return Request(
        id=f"r{next(NUMBERS)}",
        prompt=prompt,
        params=SamplingParams(seed=0, max_tokens=2),
        keys=prompt_keys(prompt, BLOCK, salt=salt),
        cache_salt=salt,
        session=session,
    )


@pytest.fixture
def card(card: ModelCard) -> ModelCard:
    return replace(card, block_size=BLOCK)


def routed(test: Callable, channels: list[Channel], until: Callable, gateways: int = 1) -> None:
    async def main() -> None:
        routers = []
        for number in range(gateways):
            members = Membership()
            router = FleetRouter(wanted={("tiny",): 2}, secret=SECRET, gateway=f"g{number}")
            router.watch(members)
            members.publish("tiny", tuple(Member(c.replica, "tiny", *c.address) for c in channels))
            routers.append(router)
        await until(lambda: all(len(router.links()) == 2 for router in routers))
        await test(*routers)
        for router in routers:
            router.close()

    asyncio.run(main())


def link_of(router: FleetRouter, name: str) -> RemoteLink:
    (found,) = [link for link in router.links() if link.replica == name]
    assert isinstance(found, RemoteLink)
    return found


PROMPT = tuple(range(900))


def test_the_next_turn_goes_where_the_first_one_was(channels, until) -> None:
    """At every gateway, also one that never sent anything, and before any beat."""

    async def test(first: FleetRouter, other: FleetRouter) -> None:
        turn = request(PROMPT)
        link = link_of(first, "r2")
        engine = channels[1].engine
        got: list = []
        link.submit(turn, got.append)
        await until(lambda: engine.live)
        for key in turn.keys[7::8]:
            engine.holdings.gain(key)
        engine.step()
        engine.step()
        await until(lambda: len(got) == 2)
        again = request((*PROMPT, 1, 2, 3))
        assert link_of(first, "r2").cached(again) == 7 * 128, "told before the stream's end"
        await until(lambda: link_of(other, "r2").cached(again) == 7 * 128)
        for router in (first, other):
            await until(lambda router=router: not link_of(router, "r2").standing().tokens)
            assert {router.choose("tiny", again).replica for _ in range(4)} == {"r2"}
            salted = request((*PROMPT, 1, 2, 3), salt="mine")
            assert {router.choose("tiny", salted).replica for _ in range(4)} == {"r1", "r2"}

    routed(test, channels, until, gateways=2)


def test_load_in_tokens_sends_it_elsewhere(channels, until) -> None:
    async def test(router: FleetRouter) -> None:
        again = request((*PROMPT, 1))
        for key in again.keys[7::8]:
            channels[0].engine.holdings.gain(key)
        await until(lambda: link_of(router, "r1").cached(again))
        assert router.choose("tiny", again).replica == "r1"
        channels[0].engine.told = {"tokens": 5000}
        await until(lambda: link_of(router, "r1").load.tokens == 5000)
        assert router.choose("tiny", again).replica == "r2"
        channels[0].engine.told = {}
        await until(lambda: not link_of(router, "r1").load.tokens)
        for _ in range(8):  # what this gateway sends counts before any beat
            link_of(router, "r1").submit(request(tuple(range(5000, 5500))), lambda update: None)
        assert link_of(router, "r1").standing().tokens == 4000
        assert router.choose("tiny", again).replica == "r2"

    routed(test, channels, until)


def test_a_replica_that_evicts_or_leaves_is_not_looked_for(channels, until) -> None:
    async def test(router: FleetRouter) -> None:
        again = request((*PROMPT, 1))
        for key in again.keys[7::8]:
            channels[0].engine.holdings.gain(key)
        await until(lambda: link_of(router, "r1").cached(again) == 7 * 128)
        channels[0].engine.holdings.lose(again.keys[23])
        await until(lambda: link_of(router, "r1").cached(again) == 2 * 128)
        channels[0].drain(0)
        await until(lambda: link_of(router, "r1").leaving)
        assert {router.choose("tiny", again).replica for _ in range(3)} == {"r2"}

    routed(test, channels, until)


def test_a_session_stays_together_at_every_gateway(channels, until) -> None:
    async def test(*routers: FleetRouter) -> None:
        homes = set()
        for number in range(12):
            found = {
                router.choose("tiny", request((number,), f"s{number}")).replica
                for router in routers
                for _ in range(3)
            }
            assert len(found) == 1
            homes |= found
        assert homes == {"r1", "r2"}

    routed(test, channels, until, gateways=3)


def test_where_every_queue_is_full_nothing_is_sent(channels, until) -> None:
    async def test(router: FleetRouter) -> None:
        router.check_room("tiny")
        channels[0].engine.told = {"room": 0}
        await until(lambda: link_of(router, "r1").load.room == 0)
        router.check_room("tiny")
        assert {router.choose("tiny", request((1,))).replica for _ in range(3)} == {"r2"}
        channels[1].engine.told = {"room": 2}
        await until(lambda: link_of(router, "r2").load.room == 2)
        for number in range(2):
            router.check_room("tiny")
            link_of(router, "r2").submit(request((number,)), lambda update: None)
        with pytest.raises(Overloaded, match="all 2 replicas"):
            router.check_room("tiny")

    routed(test, channels, until)
