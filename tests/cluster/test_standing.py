"""The choice by cases, and the estimate of a replica's work between two words of it."""

from __future__ import annotations

from shoal.cluster.backlog import Backlog
from shoal.cluster.standing import SEQUENCE, SESSION, Standing, best, home_of
from shoal.engine.request import Load


def standing(
    name: str,
    cached: int = 0,
    tokens: int = 0,
    sequences: int = 0,
    room: int | None = None,
    last_used: int = 0,
) -> Standing:
    return Standing(name, cached, tokens, sequences, room, last_used)


def chosen(*standings: Standing, prompt: int = 1000, session: str = "") -> str:
    found = {best(order, prompt, session).replica for order in (standings, standings[::-1])}
    assert len(found) == 1, "the order in which replicas are known counts for nothing"
    return found.pop()


def test_a_cached_prefix_draws_as_much_as_it_spares() -> None:
    assert chosen(standing("a", cached=512), standing("b")) == "a"
    assert chosen(standing("a", cached=512), standing("b", cached=640)) == "b"
    assert chosen(standing("a", cached=512, tokens=500), standing("b")) == "a"
    assert chosen(standing("a", cached=512, tokens=600), standing("b")) == "b"


def test_sequences_at_work_turn_away() -> None:
    few, many = 512 // SEQUENCE - 1, 512 // SEQUENCE + 1
    assert chosen(standing("a", cached=512, sequences=few), standing("b")) == "a"
    assert chosen(standing("a", cached=512, sequences=many), standing("b")) == "b"


def test_equals_take_turns_and_then_go_by_name() -> None:
    assert chosen(standing("a", last_used=2), standing("b", last_used=1)) == "b"
    assert chosen(standing("b"), standing("a")) == "a"


def test_a_full_queue_is_passed_over_however_much_it_holds() -> None:
    full = standing("a", cached=1000, room=0)
    assert chosen(full, standing("b", tokens=9000, room=1)) == "b"
    assert chosen(full, standing("b", tokens=9000, room=0)) == "a", "the engine refuses, not we"


def test_a_session_stays_at_home_until_that_costs_too_much() -> None:
    names = ("a", "b", "c")
    for number in range(20):
        session = f"session {number}"
        home = home_of(session, names)
        others = [standing(name) for name in names if name != home]
        at = SESSION - 1, SESSION + 1
        assert chosen(standing(home, tokens=at[0]), *others, session=session) == home
        assert chosen(standing(home, tokens=at[1]), *others, session=session) != home


def test_homes_are_even_and_move_only_with_their_replica() -> None:
    names = [f"replica-{number}" for number in range(4)]
    sessions = [f"s{number}" for number in range(2000)]
    homes = {session: home_of(session, names) for session in sessions}
    for name in names:
        assert 400 < list(homes.values()).count(name) < 600
    for session in sessions:
        fewer = home_of(session, names[1:])
        assert fewer == homes[session] or homes[session] == names[0]
    assert home_of("\ud800", names) in names


def test_a_backlog_counts_each_request_once() -> None:
    backlog = Backlog(Load(tokens=100, room=10))
    first, second = backlog.send(50, 1), backlog.send(70, 2)
    assert (backlog.tokens, backlog.room) == (220, 7)
    backlog.told(Load(tokens=130, room=9), 1)
    assert (backlog.tokens, backlog.room) == (200, 7)
    backlog.begun(first, 50)
    assert backlog.tokens == 150
    backlog.begun(second, 70)
    assert backlog.tokens == 80, "begun before the replica told of it"
    backlog.ended()
    assert backlog.room == 8
    backlog.told(Load(tokens=3, room=10), 2)
    assert (backlog.tokens, backlog.room) == (3, 10)
    backlog.begun(1, 50)
    assert backlog.tokens == 0
    backlog.refused()
    assert backlog.room == 0
    backlog.told(Load(room=4), 2)
    assert backlog.room == 4
    unbounded = Backlog(Load())
    unbounded.refused()
    assert unbounded.room is None
