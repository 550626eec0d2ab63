"""A request that a replica refuses before it has begun anywhere; replicas are scripted."""

import pytest
from scene import settled
from shoal.engine.errors import EngineLost, InvalidRequest, Overloaded


@pytest.mark.parametrize("refusal", [Overloaded("full", 3.0), InvalidRequest("no", "prompt")])
def test_a_first_refusal_reaches_the_caller(scene, refusal):
    async def test(scene):
        for replica in scene.fleet.replicas:
            replica.refusal = refusal
        scene.begin()
        await settled()
        assert scene.errors == [refusal]

    scene(test)


@pytest.mark.parametrize("refusal", [Overloaded("full", 3.0), EngineLost("it is being stopped")])
def test_a_request_that_one_replica_refuses_goes_to_another(scene, refusal):
    async def test(scene):
        first, second, full = scene.fleet.replicas
        first.refusal, full.has_room = refusal, False
        generation = scene.begin(n=2)
        await settled()
        assert len(first.seen) == 1 and len(second.live) == 2 and not full.seen
        await scene.finish()
        assert [choice.epoch for choice in generation.choices] == [0, 0]

    assert not scene(test, num=3).errors


def test_every_replica_that_may_have_room_is_asked_once(scene):
    async def test(scene):
        *asked, full = scene.fleet.replicas
        full.has_room = False
        for i, replica in enumerate(asked):
            replica.refusal = Overloaded(f"full {i}", 3.0)
        scene.begin()
        await settled()
        assert [len(replica.seen) for replica in asked] == [1, 1, 1] and not full.seen
        assert scene.errors == [asked[-1].refusal]
        assert not len(scene.failover._lives)

    scene(test, num=4)


def test_a_refused_request_is_not_bound_to_the_weights_that_refused_it(scene):
    async def test(scene):
        scene.fleet.replicas[0].refusal = Overloaded("full", 3.0)
        other = scene.add("other weights")
        generation = scene.begin()
        await settled()
        assert other.live and generation.state.digest == "other weights"
        await scene.finish()

    assert not scene(test, num=1).errors
