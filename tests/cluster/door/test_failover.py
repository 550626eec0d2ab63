"""Streams that outlive their replicas; those are scripted, each token follows from the state."""

import asyncio
from dataclasses import replace

import pytest
from scene import MODEL, settled, until
from shoal.cluster import catalog
from shoal.cluster.formats import merged
from shoal.cluster.link import LinkLost
from shoal.cluster.lives import RESUMED_TOKENS
from shoal.engine.errors import EngineLost, FatalRequest, Overloaded

CASES = {
    "seeded": {},
    "several": {"n": 3},
    "best of": {"n": 4, "logprobs": 0, "num_answers": 2},
    "logprobs": {"logprobs": 2, "n": 2, "prompt_logprobs": 1},
    "stop string": {"stop": ["ch", "dlm"], "min_tokens": 3},
    "penalties": {"presence_penalty": 1.0, "repetition_penalty": 1.2, "min_tokens": 5},
    "beams": {"n": 2, "best_of": 3, "use_beam_search": True, "temperature": 0},
}


@pytest.mark.parametrize("how", ["dies", "is silent", "leaves"])
@pytest.mark.parametrize("after", [0, 1, 7, 19])
@pytest.mark.parametrize("case", CASES)
def test_nothing_changes_when_a_replica_goes(scene, case, after, how):
    async def undisturbed(scene):
        scene.begin(**CASES[case])
        await scene.finish()

    async def disturbed(scene):
        generation = scene.begin(**CASES[case])
        scene.step(after)
        for _ in range(2):
            busy = next((r for r in scene.fleet.replicas if r.live), None)
            if busy is None:
                break
            if how == "leaves":
                busy.leaving = True
            else:
                busy.lose(died=how == "dies")
            scene.add()
            await until(lambda busy=busy: generation.ended or not busy.live)
            scene.step(2)
        await scene.finish()

    expected, got = scene(undisturbed), scene(disturbed)
    assert not got.errors
    if case == "beams":  # a search is begun anew; scripted tokens are not held back till its end
        return
    assert got.told() == expected.told()
    assert got.generations[0].state.prompt_logprobs == expected.generations[0].state.prompt_logprobs


def test_beams_begin_anew_all_together(scene):
    async def test(scene):
        generation = scene.begin(**CASES["beams"])
        first, second = scene.fleet.replicas
        first.lose()
        await settled()
        (request,) = second.seen
        assert request == replace(generation.request, epoch=1)
        assert len(second.live) == 2
        await scene.finish()

    assert not scene(test).errors


def test_a_stream_waits_for_a_replica_of_its_weights(scene):
    async def test(scene):
        scene.begin()
        scene.step(3)
        scene.fleet.replicas[0].lose()
        scene.add("other weights")
        await asyncio.sleep(0.03)
        assert not scene.errors and not scene.fleet.replicas[0].seen
        other = scene.add()
        await until(lambda: other.live)
        await scene.finish()

    done = scene(test, num=1)
    assert not done.errors and done.generations[0].choices[0].num_tokens == 20


def test_the_wait_has_an_end(scene):
    async def test(scene):
        scene.begin(n=2)
        scene.step(3)
        scene.fleet.replicas[0].lose()
        await until(lambda: scene.errors)

    (error,) = scene(test, num=1, timeout_s=0.2).errors
    assert isinstance(error, EngineLost)


@pytest.mark.parametrize(("told", "why"), [({}, "is served no more"), ({MODEL: None}, "is left")])
def test_a_model_that_gets_no_more_replicas_is_not_waited_for(scene, told, why):
    async def test(scene):
        scene.begin("kept", max_tokens=3)
        scene.begin("cut")
        scene.fleet.replicas[0].leaving = True
        scene.failover.serve_only({"another": "1", **told})
        await asyncio.sleep(0.03)
        scene.step(3)
        assert not scene.errors and len(scene.fleet.replicas[0].live) == 1
        scene.fleet.replicas[0].lose()
        await settled()
        assert f"the model `scripted` {why}" in str(scene.errors[0])
        with pytest.raises(EngineLost):
            scene.begin("late")

    done = scene(test, num=1)
    assert len(done.errors) == 1 and done.generations[0].choices[0].num_tokens == 3


def test_weights_that_are_served_no_more_are_not_waited_for(scene):
    """Not before a replica that was asked for has others: those that the last one of an earlier
    version has may come again.
    """

    async def test(scene):
        old = scene.add(version="1")
        scene.begin()
        scene.step(3)
        earlier = scene.add("other weights", version="0")
        scene.failover.serve_only({MODEL: "2"})
        old.lose()
        await settled()
        assert scene.failover.num_streams == 1 and not earlier.live
        scene.add("other weights", version="2")
        await until(lambda: scene.errors)
        assert "is lost; the model `scripted` is served with other weights" in str(scene.errors[0])
        assert not scene.failover.num_streams

    assert len(scene(test, num=0).errors) == 1


def test_what_has_not_begun_begins_on_other_weights_but_in_its_own_vocabulary(scene):
    async def test(scene):
        old = scene.add(version="1")
        generation = scene.begin()
        generation.state.vocabulary = old.card.vocabulary
        stranger, new = scene.add("b"), scene.add("c")
        stranger.card = replace(stranger.card, tokenizer="another", version="2")
        old.lose()
        await until(lambda: new.live)
        assert not stranger.seen and generation.state.digest == "c"
        await scene.finish()

    assert not scene(test, num=0).errors


def test_a_new_version_of_the_same_weights_takes_streams_over(scene):
    async def test(scene):
        old = scene.add(version="1")
        generation = scene.begin()
        scene.step(3)
        scene.failover.serve_only({MODEL: "2"})
        old.lose()
        await settled()
        new = scene.add(version="2")
        await until(lambda: new.live)
        await scene.finish()
        assert generation.choices[0].num_tokens == 20

    assert not scene(test, num=0).errors


def test_a_stopping_server_waits_for_no_replacement(scene):
    async def test(scene):
        scene.begin()
        scene.step(3)
        scene.fleet.replicas[0].leaving = True
        scene.failover.stop()
        await asyncio.sleep(0.03)
        scene.step()
        assert not scene.errors and len(scene.fleet.replicas[0].live) == 1
        scene.fleet.replicas[0].lose()
        await settled()
        assert "shutting down" in str(scene.errors[0])

    scene(test, num=1)


def test_what_a_replica_says_after_a_stream_has_moved_is_not_heard(scene):
    async def test(scene):
        generation = scene.begin()
        stalled, other = scene.fleet.replicas
        scene.step(4)
        kept = stalled.lose(died=False)
        await settled()
        for request, on_update, emitted in kept.values():
            on_update(stalled.next(request, 0, emitted))
            on_update(LinkLost("again", died=True))
        assert generation.choices[0].num_tokens == 4
        other.step()
        assert generation.choices[0].num_tokens == 5
        assert generation.choices[0].deaths == 0
        await scene.finish()

    assert not scene(test).errors


@pytest.mark.parametrize("how", [{"died": True}, {"died": False, "stuck": True}])
def test_a_request_that_kills_engines_is_found_out_and_its_company_is_not(scene, how):
    async def test(scene):
        poison = scene.begin("poison", prompt=(666,))
        others = [scene.begin(f"o{i}") for i in range(6)]
        died, alone = 0, []
        for _ in range(300):
            for replica in tuple(scene.fleet.replicas):
                if any(key[0] == "poison" for key in replica.live):
                    alone.append(len(replica.live) == 1)
                    replica.lose(**how)
                    died += 1
                    scene.add()
                else:
                    replica.step()
            await asyncio.sleep(0.001)
            if all(generation.ended for generation in (poison, *others)):
                break
        (error,) = scene.errors
        assert isinstance(error, FatalRequest)
        assert died == 3 and alone[-1]
        assert [g.choices[0].num_tokens for g in others] == [20] * 6
        assert not scene.failover._lives._apart

    done = scene(test)
    assert done.value(catalog.LOST, "stuck" if how.get("stuck") else "died") == 3


def test_an_only_replica_is_cleared_for_a_suspect_and_filled_again(scene):
    async def test(scene):
        suspect = scene.begin("suspect")
        for _ in range(2):
            scene.fleet.replicas[0].lose()
            scene.add()
            await settled()
        (only,) = scene.fleet.replicas
        other = scene.begin("other")
        await settled()
        assert set(only.live) == {("suspect", 0)}, "new requests wait too"
        scene.step()
        await settled()
        assert set(only.live) == {("suspect", 0), ("other", 0)}
        await scene.finish()
        assert [g.choices[0].num_tokens for g in (suspect, other)] == [20, 20]

    assert not scene(test, num=1).errors


def test_a_suspect_interrupts_what_runs(scene):
    async def test(scene):
        scene.begin("suspect")
        scene.fleet.replicas[0].lose()
        scene.add()
        await settled()
        others = [scene.begin(f"o{i}") for i in range(2)]
        for other in others:  # they have got on, and are no suspects
            replica = scene.fleet.replicas[0]
            request, on_update, emitted = replica.live[other.request.id, 0]
            on_update(replica.next(request, 0, emitted))
        scene.fleet.replicas[0].lose()
        scene.add()
        await settled()
        assert set(scene.fleet.replicas[0].live) == {("suspect", 0)}
        await scene.finish()

    assert not scene(test, num=1).errors


def test_a_stream_outlives_so_many_stuck_engines(scene):
    async def test(scene):
        scene.begin()
        for _ in range(3):
            scene.step()
            next(r for r in scene.fleet.replicas if r.live).lose(died=False, stuck=True)
            scene.add()
            await settled()
        (error,) = scene.errors
        assert isinstance(error, EngineLost) and "--max-failovers=2" in str(error)

    scene(test, max_failovers=2)


def test_only_deaths_count(scene):
    async def test(scene):
        generation = scene.begin()
        for _ in range(12):
            next(r for r in scene.fleet.replicas if r.live).lose(died=False)
            scene.add()
            await settled()
        assert generation.choices[0].deaths == 0
        for _ in range(3):
            scene.step()
            next(r for r in scene.fleet.replicas if r.live).lose()
            scene.add()
            await settled()
        (error,) = scene.errors
        assert isinstance(error, EngineLost) and "--max-failovers=2" in str(error)

    scene(test, max_failovers=2)


def test_resumptions_are_paced_and_the_oldest_come_first(scene):
    async def test(scene):
        for i in range(6):
            scene.begin(f"s{i}", prompt=tuple(range(10, 10 + RESUMED_TOKENS // 3)))
        first = scene.fleet.replicas[0]
        first.lose()
        second = scene.add()
        await settled()
        assert [request.id for request in second.seen] == ["s0", "s1", "s2"]
        second.step()
        await settled()
        assert [request.id for request in second.seen] == [f"s{i}" for i in range(6)]
        await scene.finish()

    assert not scene(test, num=1).errors


def test_a_stream_longer_than_the_pace_is_resumed_too(scene):
    async def test(scene):
        scene.begin(prompt=tuple(range(2 * RESUMED_TOKENS)))
        scene.fleet.replicas[0].lose()
        await scene.finish()

    assert not scene(test).errors


def test_a_drain_moves_what_others_can_take_and_leaves_the_rest(scene):
    async def test(scene):
        for i in range(4):
            scene.begin(f"s{i}", prompt=tuple(range(RESUMED_TOKENS // 2)))
        (leaving,) = scene.fleet.replicas
        scene.step()
        leaving.leaving = True
        await asyncio.sleep(0.03)
        assert len(leaving.live) == 4, "there is no other replica"
        other = scene.add()
        await until(lambda: other.live)
        assert 1 <= len(other.live) < 4 and len(leaving.live) + len(other.live) == 4
        await until(lambda: scene.step() or not leaving.live)
        await scene.finish()
        assert scene.value(catalog.MOVED) == 4

    assert not scene(test, num=1).errors


def test_a_request_that_comes_while_the_only_replica_leaves_finds_a_place(scene):
    async def test(scene):
        old = scene.fleet.replicas[0]
        old.leaving = True
        scene.begin("before the successor is there")
        assert not old.seen
        await until(lambda: old.live)
        scene.step(2)
        new = scene.add()
        scene.begin("after it")
        await until(lambda: not old.live and len(new.live) == 2)
        await scene.finish()

    assert not scene(test, num=1).errors


def test_a_request_that_comes_while_the_server_ends_is_refused(scene):
    async def test(scene):
        scene.fleet.replicas[0].leaving = True
        scene.failover.stop()
        with pytest.raises(EngineLost):
            scene.begin()

    scene(test, num=1)


def test_a_stream_stays_for_the_grace_time(scene):
    async def test(scene):
        scene.begin()
        leaving = next(r for r in scene.fleet.replicas if r.live)
        leaving.leaving = True
        await asyncio.sleep(0.03)
        assert leaving.live
        await scene.finish()
        assert not leaving.aborted

    scene(test, grace_s=60)


def test_a_lost_stream_goes_to_a_leaving_replica_where_there_is_no_other(scene):
    async def test(scene):
        scene.begin()
        scene.step()
        lost, other = scene.fleet.replicas
        other.leaving = True
        lost.lose()
        await settled()
        assert other.live
        await scene.finish()

    assert not scene(test).errors


def test_a_full_replica_does_not_end_a_stream_that_has_begun(scene):
    async def test(scene):
        generation = scene.begin()
        first, second = scene.fleet.replicas
        scene.step()
        second.refusal = Overloaded("full", 3.0)
        first.lose()
        await until(lambda: len(second.seen) > 1)
        assert not scene.errors
        second.refusal = None
        await scene.finish()
        assert generation.choices[0].num_tokens == 20

    assert not scene(test).errors


def test_a_dropped_stream_is_forgotten(scene):
    async def test(scene):
        running, waiting = scene.begin("a", n=2), scene.begin("b")
        first, second = scene.fleet.replicas
        second.lose()
        scene.failover.drop(waiting)
        scene.failover.drop(running)
        scene.failover.drop(running)
        await settled()
        assert first.aborted == [("a", None)] and not first.live
        await until(lambda: scene.failover._timer is None)
        assert not len(scene.failover._lives)

    assert not scene(test).errors


def test_merged_deltas_are_those_of_one_life(scene):
    async def test(scene):
        scene.begin(n=2, logprobs=1)
        scene.step(5)
        scene.fleet.replicas[0].lose()
        await scene.finish()
        for deltas in scene.deltas.values():
            whole = merged(deltas)
            assert len(whole.tokens) == len(whole.logprobs) == 20

    assert not scene(test).errors
