"""Who finds a place, as it is reckoned before anybody is asked."""

from __future__ import annotations

from shoal.cluster.room import Room


def test_what_was_taken_is_not_there_for_the_next_one() -> None:
    room = Room([{"CPU": 2, "GPU": 1}, {"CPU": 2}])
    assert room.take([{"CPU": 1, "GPU": 1}])
    assert not room.take([{"CPU": 1, "GPU": 1}])
    assert room.take([{"CPU": 2}]) and room.take([{"CPU": 1}])
    assert not room.take([{"CPU": 0.5}])


def test_a_bundle_is_of_one_node_and_who_does_not_fit_takes_nothing() -> None:
    room = Room([{"CPU": 1}, {"CPU": 1}])
    assert not room.take([{"CPU": 2}])
    assert not room.take([{"CPU": 1}, {"CPU": 1}, {"CPU": 1}])
    assert room.take([{"CPU": 1}, {"CPU": 1}])
