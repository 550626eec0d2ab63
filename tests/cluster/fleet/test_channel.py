"""The socket between a gateway and a replica: what it carries, and whom it refuses."""

from __future__ import annotations

import asyncio
import os
import socket
import struct

import pytest
from shoal.cluster import channel as channel_module
from shoal.cluster import rank_wire, remote, wire
from shoal.engine.errors import EngineLost, InvalidRequest, Overloaded, WorkerSilent, WorkerStalled
from shoal.engine.plan import Candidate, Result
from shoal.engine.request import (
    FinishReason,
    Request,
    SamplingParams,
    TokenLogprobs,
    Update,
    fold_seed,
)

SECRET = b"s" * 32


def request(id: str = "a", **params: object) -> Request:
    return Request(id=id, prompt=(1, 2, 3), params=SamplingParams(seed=7, **params))


async def connect(channel, secret: bytes = SECRET, lost: list | None = None) -> remote.RemoteLink:
    lost = [] if lost is None else lost
    return await remote.connect(*channel.address, secret=secret, gateway="g", on_lost=lost.append)


def raw(channel) -> socket.socket:
    return socket.create_connection(channel.address, timeout=60)


def answer(connection: socket.socket) -> wire.ToGateway | None:
    """The next message; None where the other side hung up."""
    try:
        head = connection.recv(4, socket.MSG_WAITALL)
        if len(head) < 4:
            return None
        return wire.from_replica(connection.recv(wire.frame_size(head), socket.MSG_WAITALL))
    except ConnectionResetError:
        return None


def test_a_request_and_its_updates_survive_the_wire() -> None:
    sent = Request(
        id="x",
        prompt=tuple(range(300)),
        params=SamplingParams(
            n=2, stop=["a", "é"], logit_bias={5: -1.5}, bad_words_ids=[[1, 2], [3]], seed=3
        ),
        emitted=(4, 5),
        cache_salt="s",
        epoch=2,
    )
    assert wire.request_of(wire.from_gateway(wire.frame(wire.submit_of(sent))[4:])) == sent
    scored = TokenLogprobs(-0.5, 1, ((3, -0.5), (9, -1.0)))
    updates = [
        Update("x", 1, (3, 4), (scored, scored), (None, scored), 32, FinishReason.STOP, 2, None, 2),
        Update("y", 0, error="no", finish=FinishReason.ERROR),
    ]
    assert wire.from_replica(wire.frame(wire.Step(updates))[4:]).updates == updates


def test_beams_and_their_candidates_survive_the_wire() -> None:
    params = SamplingParams(
        n=2, best_of=4, use_beam_search=True, temperature=0, early_stopping="never", seed=1
    )
    sent = Request(id="x", prompt=(1, 2), params=params)
    assert wire.request_of(wire.from_gateway(wire.frame(wire.submit_of(sent))[4:])) == sent
    scored = TokenLogprobs(-1.0, 1, ((3, -1.0),))
    result = Result(step=1, tokens=((3,),), candidates={2: (Candidate(3, -1.5, scored),)})
    unread = rank_wire.frame(rank_wire.Done(result))
    done = rank_wire.from_rank(rank_wire.take_frame(unread) or b"")
    assert isinstance(done, rank_wire.Done) and done.result == result


def test_a_seed_of_any_size_crosses() -> None:
    """And draws there what it draws where it does not cross."""
    for seed in (-1, -(1 << 80) - 5, 1 << 64, 10**40, (1 << 64) - 1, 0):
        sent = Request(id="x", prompt=(1,), params=SamplingParams(seed=seed))
        got = wire.request_of(wire.from_gateway(wire.frame(wire.submit_of(sent))[4:]))
        assert got.params.seed == fold_seed(seed)


def test_a_function_cannot_cross() -> None:
    with pytest.raises(InvalidRequest, match="logits_processors"):
        wire.submit_of(request(logits_processors=[lambda ids, row: row]))


def test_one_message_a_step_carries_all_streams(channel, engine, until, monkeypatch) -> None:
    async def main() -> None:
        link = await connect(channel)
        steps = []
        monkeypatch.setattr(link, "_take", lambda m, take=link._take: (steps.append(m), take(m)))
        got: dict[str, list] = {f"r{i}": [] for i in range(20)}
        for id, updates in got.items():
            link.submit(request(id, max_tokens=3), updates.append)
        await until(lambda: len(engine.live) == 20)
        assert link.num_live == 20
        for number in range(1, 4):
            engine.step()
            await until(lambda n=number: all(len(u) == n for u in got.values()))
        assert [len(m.updates) for m in steps if isinstance(m, wire.Step)] == [20, 20, 20]
        assert all([u.tokens for u in us] == [(0,), (1,), (2,)] for us in got.values())
        assert all(us[-1].finish is FinishReason.LENGTH for us in got.values())
        assert link.num_live == 0 and channel.num_live == 0
        link.close()

    asyncio.run(main())


def test_the_card_and_the_load_come_by_message(channel, engine, until) -> None:
    async def main() -> None:
        link, other = await connect(channel), await connect(channel)
        assert link.card == channel.card and link.replica == "r1"
        link.submit(request("a", n=3), print)
        assert link.standing().sequences == 3
        await until(lambda: link.load.running == 3 and other.standing().sequences == 3)
        assert link.standing().sequences == 3 and link.load.counters == {"aborted": 0.0}
        link.close()
        other.close()

    asyncio.run(main())


def test_refusals_come_back_as_they_were_raised(channel, engine, until) -> None:
    async def main() -> None:
        link = await connect(channel)
        got: list = []
        link.submit(Request(id="empty", prompt=()), got.append)
        await until(lambda: len(got) == 1)
        assert isinstance(got[0], InvalidRequest) and got[0].param == "prompt"
        engine.full = True
        link.submit(request("b", n=2), got.append)
        await until(lambda: len(got) == 2)
        assert isinstance(got[1], Overloaded) and got[1].retry_after_s == 3.0
        link.submit(request("c", logits_processors=[print]), got.append)
        await until(lambda: len(got) == 3)
        assert isinstance(got[2], InvalidRequest)
        assert link.num_live == 0 and channel.num_live == 0
        link.close()

    asyncio.run(main())


def test_an_abort_frees_and_silences(channel, engine, until) -> None:
    async def main() -> None:
        link = await connect(channel)
        got: list = []
        link.submit(request("a", n=3, max_tokens=9), got.append)
        await until(lambda: len(engine.live) == 3)
        link.abort("a", 1)
        await until(lambda: len(engine.live) == 2)
        engine.step()
        await until(lambda: len(got) == 2)
        assert {u.sibling for u in got} == {0, 2}
        link.abort("a")
        link.abort("unknown")
        await until(lambda: not engine.live and not channel.num_live)
        assert link.num_live == 0
        link.close()

    asyncio.run(main())


def test_an_older_epoch_is_dropped(channel, engine, until) -> None:
    async def main() -> None:
        link = await connect(channel)
        got: list = []
        link.submit(Request(id="a", prompt=(1,), epoch=1), got.append)
        link._take(wire.Step([Update("a", 0, tokens=(9,), epoch=0)]))
        assert got == []
        link._take(wire.Step([Update("a", 0, tokens=(8,), epoch=1)]))
        assert [u.tokens for u in got] == [(8,)]
        link.close()

    asyncio.run(main())


def test_a_gateway_that_dies_takes_its_generations_along_and_no_others(
    channel, engine, until
) -> None:
    async def main() -> None:
        dying, staying = await connect(channel), await connect(channel)
        dying.submit(request("a", n=2), print)
        dying.submit(request("b"), print)
        staying.submit(request("c"), print)
        await until(lambda: len(engine.live) == 4)
        dying._transport.abort()
        await until(lambda: set(engine.live) == {("c", 0)})
        assert channel.num_live == 1
        staying.close()

    asyncio.run(main())


def test_a_dead_replica_ends_every_request_once(channel, engine, until) -> None:
    async def main() -> None:
        lost: list = []
        link = await connect(channel, lost=lost)
        got: dict[str, list] = {"a": [], "b": []}
        for id, updates in got.items():
            link.submit(request(id, n=2), updates.append)
        await until(lambda: len(engine.live) == 4)
        channel.close()
        await until(lambda: lost == [link])
        assert all(len(u) == 1 and isinstance(u[0], EngineLost) for u in got.values())
        late: list = []
        link.submit(request("c"), late.append)
        await until(lambda: len(late) == 1)
        assert isinstance(late[0], EngineLost)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("how", "died", "stuck"),
    [(EngineLost, True, False), (WorkerStalled, False, True), (WorkerSilent, False, False)],
)
def test_an_engine_that_dies_is_lost_with_its_reason(
    channel, engine, until, how, died, stuck
) -> None:
    """Of a rank that was stopped or cut off no request is to blame."""
    engine.loss = how

    async def main() -> None:
        lost: list = []
        link = await connect(channel, lost=lost)
        got: list = []
        link.submit(request("a", n=2), got.append)
        await until(lambda: len(engine.live) == 2)
        engine.die()
        await until(lambda: lost)
        assert len(got) == 1 and isinstance(got[0], EngineLost)
        assert "the script said so" in got[0].message
        assert (got[0].died, got[0].stuck) == (died, stuck)
        assert link.state == ("dead" if died else "stalled")

    asyncio.run(main())


def test_a_replica_that_gives_up_was_stuck_over_its_work(channel, engine, until) -> None:
    async def main() -> None:
        link = await connect(channel)
        got: list = []
        link.submit(request("a"), got.append)
        await until(lambda: engine.live)
        channel.give_up("no progress")
        await until(lambda: got)
        assert (got[0].died, got[0].stuck, link.state) == (False, True, "stalled")

    asyncio.run(main())


def test_a_silent_replica_is_lost(channel, engine, until, monkeypatch) -> None:
    monkeypatch.setattr(engine, "load", lambda load=engine.load: pause.wait(60) and load())
    import threading

    pause = threading.Event()
    pause.set()

    async def main() -> None:
        link = await connect(channel)
        got: list = []
        link.submit(request("a"), got.append)
        pause.clear()
        await until(lambda: link.lost is not None)
        assert "no sign of life" in link.lost and isinstance(got[0], EngineLost)

    asyncio.run(main())
    pause.set()


def test_a_silent_gateway_is_dropped(channel, engine, until, monkeypatch) -> None:
    monkeypatch.setattr(wire, "GATEWAY_SILENCE_S", 0.3)

    async def main() -> None:
        link = await connect(channel)
        link._ticking.cancel()
        got: list = []
        link.submit(request("a"), got.append)
        await until(lambda: ("a", None) in engine.aborted and not engine.live)
        await until(lambda: link.lost is not None)
        assert "hung up on the gateway: it fell silent" in link.lost
        assert not got[-1].died and not got[-1].stuck, "the engine lives"

    asyncio.run(main())


def test_a_replica_that_leaves_says_so_and_finishes(channel, engine, until) -> None:
    async def main() -> None:
        link = await connect(channel)
        got: list = []
        link.submit(request("a", max_tokens=1), got.append)
        await until(lambda: engine.live)
        draining = asyncio.create_task(asyncio.to_thread(channel.drain, 30.0))
        await until(lambda: link.leaving)
        late: list = []
        link.submit(request("b"), late.append)
        await until(lambda: late)
        assert isinstance(late[0], EngineLost)
        engine.step()
        assert await draining
        await until(lambda: got)
        assert got[0].finish is FinishReason.LENGTH
        link.close()

    asyncio.run(main())


def test_another_secret_is_refused_by_name(channel) -> None:
    with pytest.raises(EngineLost, match="stranger"):
        asyncio.run(connect(channel, secret=b"x" * 32))


def test_a_gateway_without_the_secret_is_refused(channel) -> None:
    with raw(channel) as stranger:
        hello = wire.Hello(wire.PROTOCOL, wire.__version__, "g", os.urandom(32))
        stranger.sendall(wire.frame(hello))
        assert isinstance(answer(stranger), wire.Challenge)
        stranger.sendall(wire.frame(wire.Proof(b"\0" * 32)))
        refusal = answer(stranger)
        assert isinstance(refusal, wire.Refusal) and "stranger" in refusal.reason
        assert answer(stranger) is None


def test_another_version_is_refused_by_name(channel, monkeypatch) -> None:
    monkeypatch.setattr(remote, "__version__", "99.0")
    with pytest.raises(EngineLost, match=r"shoal 99\.0.*install the same version"):
        asyncio.run(connect(channel))


@pytest.mark.parametrize(
    "bytes_sent, said",
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "at most 4096"),
        (struct.pack(">I", 4097) + b"x" * 5000, "at most 4096"),
        (struct.pack(">I", 4) + b"\xff\xff\xff\xff", "no message of a gateway"),
        (struct.pack(">I", 0), "no message of a gateway"),
        (wire.frame(wire.Abort("a", None)), "begins with Hello"),
        (wire.frame(wire.Hello(1, wire.__version__, "g", b"short")), "a nonce has 32 bytes"),
    ],
)
def test_a_stranger_is_refused_and_harms_nobody(channel, engine, until, bytes_sent, said) -> None:
    async def main() -> None:
        link = await connect(channel)
        got: list = []
        link.submit(request("a", max_tokens=2), got.append)
        await until(lambda: engine.live)
        with raw(channel) as stranger:
            stranger.sendall(bytes_sent)
            refusal = await asyncio.to_thread(answer, stranger)
            assert isinstance(refusal, wire.Refusal) and said in refusal.reason
            assert await asyncio.to_thread(answer, stranger) is None
        engine.step()
        engine.step()
        await until(lambda: len(got) == 2)
        link.close()

    asyncio.run(main())


def test_an_open_link_that_sends_garbage_loses_its_own_generations_only(
    channel, engine, until
) -> None:
    async def main() -> None:
        bad, good = await connect(channel), await connect(channel)
        bad.submit(request("a"), lambda update: None)
        good.submit(request("b"), lambda update: None)
        await until(lambda: len(engine.live) == 2)
        bad._transport.write(struct.pack(">I", wire.MAX_FRAME + 1))
        await until(lambda: bad.lost is not None and set(engine.live) == {("b", 0)})
        good.close()

    asyncio.run(main())


def test_a_step_too_big_for_a_frame_is_parted(channel, engine, until, monkeypatch) -> None:
    monkeypatch.setattr(wire, "MAX_FRAME", 2000)

    async def main() -> None:
        link = await connect(channel)
        got: list = []
        for i in range(60):
            link.submit(request(f"request-{i}-{'x' * 30}"), got.append)
        await until(lambda: len(engine.live) == 60)
        engine.step()
        await until(lambda: len(got) == 60)
        peer = next(iter(channel._peers))
        link.submit(request("huge"), got.append)
        await until(lambda: ("huge", 0) in engine.live)
        peer.sink([Update("huge", 0, tokens=tuple(range(3000)))])
        await until(lambda: len(got) == 61)
        assert got[-1].finish is FinishReason.ERROR and "at most 2000" in got[-1].error
        assert ("huge", 0) not in engine.live
        link.close()

    asyncio.run(main())


def test_a_gateway_that_does_not_read_is_dropped_and_stalls_nobody(
    channel, engine, until, monkeypatch
) -> None:
    monkeypatch.setattr(channel_module, "MAX_BACKLOG", 1 << 20)

    async def main() -> None:
        lazy, busy = await connect(channel), await connect(channel)
        lazy._transport.pause_reading()
        got: list = []
        lazy.submit(request("a", max_tokens=1000), lambda update: None)
        busy.submit(request("b", max_tokens=1000), got.append)
        await until(lambda: len(engine.live) == 2)
        peer = next(p for p in channel._peers if ("a", 0) in p.live)
        big = [Update("a", 0, tokens=tuple(range(100_000)))]
        await asyncio.to_thread(lambda: [peer.sink(big) for _ in range(100) if not peer.gone])
        await until(lambda: peer.gone and set(engine.live) == {("b", 0)})
        engine.step()
        await until(lambda: got)
        busy.close()
        lazy.close()

    asyncio.run(main())


def test_a_backlog_arrives_whole_and_in_order(channel, engine, until) -> None:
    async def main() -> None:
        link = await connect(channel)
        got: list = []
        link.submit(request("a", max_tokens=1000), got.append)
        await until(lambda: engine.live)
        link._transport.pause_reading()
        peer = next(iter(channel._peers))
        for i in range(60):
            peer.sink([Update("a", 0, tokens=(i,) * 100_000)])
        link._transport.resume_reading()
        await until(lambda: len(got) == 60)
        assert [set(u.tokens) for u in got] == [{i} for i in range(60)]
        link.close()

    asyncio.run(main())
