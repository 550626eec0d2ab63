"""Which placement group is that of an engine's ranks; no Ray runs."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import ray
from shoal.cluster import placement

RANK = {"CPU": 0.5}
CONTROL = placement.CONTROL


@pytest.mark.parametrize(
    ("specs", "own"),
    [
        ([CONTROL, {"CPU": 1.0}], True),  # packed: a bundle a stage
        ([CONTROL, RANK, RANK], True),  # spread: a bundle a rank
        ([{"CPU": 0.51}, RANK], True),  # no two on a node: the executor shares the first
        ([{"CPU": 2.0}] * 3, False),  # made for something else
        ([CONTROL, {"CPU": 0.1}], False),  # no room
        (None, False),
    ],
)
def test_a_replica_knows_the_group_of_its_ranks(
    specs: list[placement.Bundle] | None, own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = None if specs is None else SimpleNamespace(bundle_specs=specs)
    monkeypatch.setattr(ray.util, "get_current_placement_group", lambda: group)
    assert (placement.own_group([{"CPU": 1.0}], ranks=2) is not None) == own
