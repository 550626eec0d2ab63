"""What an executor makes of what its ranks say, and which of them it blames."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest
from shoal.cluster import rank_wire, wire
from shoal.cluster.rank_links import RankLink, messages
from shoal.cluster.workers import Place
from shoal.engine.errors import ConfigError, WorkerLost, WorkerSilent, WorkerStalled

ALIVE = rank_wire.Alive(7, "layer 3", 6)


class Pair:
    """Two ranks; `ends` are their sockets."""

    def __init__(self) -> None:
        self.ends, ours = zip(*(socket.socketpair() for _ in range(2)), strict=True)
        self.ranks = [
            RankLink(rank, Place(f"10.0.0.{rank}", "node", 100 + rank, ()), None, end)
            for rank, end in enumerate(ours)
        ]

    def say(self, rank: int, *said: object) -> None:
        for message in said:
            self.ends[rank].sendall(rank_wire.frame(message))  # type: ignore[arg-type]

    def hear(self, stall_s: float = 0.0) -> list[object]:
        return [message for _, message in messages(self.ranks, stall_s, lambda: False)]


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair()
    yield made
    for end in (*made.ends, *(rank.connection for rank in made.ranks)):
        end.close()


def test_messages_come_whole_though_their_bytes_come_in_pieces(pair: Pair) -> None:
    frame = rank_wire.frame(ALIVE)
    pair.ends[0].sendall(frame[:5])
    found = messages(pair.ranks, 0.0, lambda: False)
    timer = threading.Timer(0.05, pair.ends[0].sendall, [frame[5:] + frame + frame[:3]])
    timer.start()
    assert next(found) == (pair.ranks[0], ALIVE)
    assert next(found) == (pair.ranks[0], ALIVE)
    assert pair.ranks[0].last == ALIVE
    timer.join()


def test_one_that_ends_is_to_blame_and_not_the_one_that_missed_it(pair: Pair) -> None:
    pair.say(0, ALIVE, rank_wire.Failed("WorkerLost", "a rank beside this one has ended", None))
    pair.say(1, ALIVE)
    pair.ends[1].shutdown(socket.SHUT_RDWR)
    with pytest.raises(WorkerLost, match=r"rank 1 \(node 10.0.0.1, pid 101\) ended without a word"):
        pair.hear()


def test_one_that_raised_is_to_blame(pair: Pair) -> None:
    pair.say(0, ALIVE, rank_wire.Failed("WorkerLost", "a rank beside this one has ended", None))
    pair.say(1, rank_wire.Failed("RuntimeError", "out of memory", None))
    with pytest.raises(WorkerLost, match=r"rank 1 .* failed: RuntimeError: out of memory"):
        pair.hear()


def test_one_that_had_no_turn_for_long_and_speaks_again_is_heard(pair: Pair) -> None:
    pair.say(0, ALIVE)
    pair.say(1, ALIVE)
    found = messages(pair.ranks, 5.0, lambda: False)
    assert {rank.rank for rank, _ in (next(found), next(found))} == {0, 1}
    for rank in pair.ranks:
        rank.heard -= 60.0
    later = threading.Timer(0.1, lambda: [pair.say(rank, ALIVE) for rank in (0, 1)])
    pair.say(0, ALIVE)
    later.start()
    assert {next(found)[0].rank for _ in range(3)} == {0, 1}
    later.join()


def test_a_refusal_keeps_its_kind_and_key(pair: Pair) -> None:
    pair.say(1, rank_wire.Failed("ConfigError", "too long", "max_model_len"))
    with pytest.raises(ConfigError, match="too long") as refusal:
        pair.hear()
    assert refusal.value.key == "max_model_len"


@pytest.mark.parametrize("waiting", ["waiting for the stage before", "layer 3, reduce"])
def test_of_two_that_are_stuck_the_one_that_does_not_wait_is_to_blame(
    waiting: str, pair: Pair
) -> None:
    pair.say(0, rank_wire.Stuck(7, waiting, 2.0, "stacks"))
    pair.say(1, rank_wire.Stuck(7, "layer 3", 2.0, "stacks"))
    words = r"rank 1 .* is stuck: .*without progress for 2.0 s"
    with pytest.raises(WorkerStalled, match=words) as told:
        pair.hear()
    assert not isinstance(told.value, WorkerSilent)


def test_one_that_is_heard_no_more_is_to_blame_and_not_the_one_that_adds_up_with_it(
    pair: Pair,
) -> None:
    found = messages(pair.ranks, 0.0, lambda: False)
    pair.say(1, ALIVE)
    assert next(found) == (pair.ranks[1], ALIVE)
    pair.ranks[1].heard -= 60.0
    pair.say(0, rank_wire.Stuck(7, "layer 3, reduce", 2.0, "stacks"))
    with pytest.raises(WorkerSilent, match=r"rank 1 .* is silent"):
        list(found)


def test_a_sum_that_all_are_stuck_in_is_told_as_it_is(pair: Pair) -> None:
    adding = "layer 3, reduce"
    for rank in (0, 1):
        stuck = rank_wire.Stuck(7, adding, 2.0, "stacks")
        pair.say(rank, rank_wire.Alive(7, adding, 6), stuck)
    with pytest.raises(WorkerLost, match=r"rank 0 .* is stuck: .* layer 3, reduce"):
        pair.hear()


def test_who_waits_for_a_stage_that_gets_on_is_not_stuck(pair: Pair) -> None:
    waiting = "waiting for the stage before"
    found = messages(pair.ranks, 0.0, lambda: False)
    pair.say(0, rank_wire.Alive(7, "layer 3", 6))
    assert next(found)[0] is pair.ranks[0]
    pair.say(1, rank_wire.Stuck(7, waiting, 2.0, "stacks"))
    assert next(found)[0] is pair.ranks[1]
    pair.say(0, rank_wire.Alive(7, "layer 4", 6))
    assert next(found)[0] is pair.ranks[0]
    pair.say(0, rank_wire.Alive(7, "idle", 7))
    assert next(found)[0] is pair.ranks[0]
    pair.say(1, rank_wire.Stuck(7, waiting, 4.0, "stacks"))
    with pytest.raises(WorkerLost, match=r"without progress for 4\.0 s"):
        list(found)


def test_silence_counts_once_a_rank_has_begun(pair: Pair) -> None:
    for rank in (0, 1):
        pair.say(rank, rank_wire.Loading(1, 2))
    found = messages(pair.ranks, 0.2, lambda: False)
    assert {type(next(found)[1]) for _ in range(2)} == {rank_wire.Loading}
    pair.say(0, ALIVE)
    assert next(found)[1] == ALIVE
    with pytest.raises(WorkerLost, match="rank 0"):
        next(found)


def test_what_is_no_message_is_refused(pair: Pair) -> None:
    pair.ends[0].sendall((3).to_bytes(rank_wire.HEAD, "big") + b"abc")
    with pytest.raises(wire.BadFrame):
        pair.hear()
