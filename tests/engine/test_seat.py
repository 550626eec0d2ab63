"""Seats of ranks, and how layers are shared out among stages."""

from __future__ import annotations

import pytest
from shoal.engine.errors import ConfigError
from shoal.engine.seat import Seat, check_even, layer_ranges


def counts(*args: object) -> list[int]:
    ranges = layer_ranges(*args)  # type: ignore[arg-type]
    assert [i for part in ranges for i in part] == list(range(args[0]))  # type: ignore[call-overload]
    return [len(part) for part in ranges]


def test_layers_are_shared_out_evenly_with_the_rest_in_the_middle() -> None:
    assert counts(4, 2) == [2, 2]
    assert counts(7, 3) == [2, 3, 2]
    assert counts(28, 8) == [3, 3, 4, 4, 4, 4, 3, 3]
    assert counts(5, 5) == [1] * 5
    assert counts(9, 4) == [2, 2, 3, 2]


def test_a_partition_is_kept() -> None:
    assert counts(6, 3, "1, 2,3") == [1, 2, 3]


@pytest.mark.parametrize("partition", ["3,3", "1,2,4", "0,3,3", "a,2,3", "1,2,3,0"])
def test_a_partition_that_does_not_add_up_is_refused(partition: str) -> None:
    with pytest.raises(ConfigError, match=r"3 counts of layers.* the model's 6"):
        layer_ranges(6, 3, partition)


def test_more_stages_than_layers_are_refused() -> None:
    with pytest.raises(ConfigError, match="use 2 or less"):
        layer_ranges(2, 3)


def test_ranks_that_share_heads_unevenly_are_refused() -> None:
    for size in (1, 2, 4, 8, 16):
        check_even(8, size, "heads", repeated=True)
    for size, fitting in ((3, "1, 2, 4, 8, or a multiple of 8"), (12, "1, 2, 4, 8, or a mult")):
        with pytest.raises(ConfigError, match=f"={size} cannot cut .* 8 heads evenly; .*{fitting}"):
            check_even(8, size, "heads", repeated=True)
    with pytest.raises(ConfigError, match=r"=16 cannot cut .* use one of 1, 2, 4, 8$"):
        check_even(8, 16, "heads", repeated=False)


def test_a_seat_knows_its_neighbours() -> None:
    nodes = ("a", "a", "a", "b")
    seats = [Seat(rank=r, tensor_size=2, num_stages=2, nodes=nodes) for r in range(4)]
    assert [(s.stage, s.tensor) for s in seats] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert [s.answers for s in seats] == [False, False, True, False]
    assert [s.mates for s in seats] == [(0, 1), (0, 1), (2, 3), (2, 3)]
    assert [s.mates_are_near for s in seats] == [True, True, False, False]
    assert [s.sharers for s in seats] == [3, 3, 3, 1]
    assert not seats[0].one_node and Seat().one_node and Seat().answers
