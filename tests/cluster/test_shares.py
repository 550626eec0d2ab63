"""What a replica gets of a machine, and with whom it shares it."""

from __future__ import annotations

import pytest
from shoal.cluster.config import ModelConfig
from shoal.cluster.settings import serve_config
from shoal.cluster.shares import Share, shared, shares


def models(*items: dict[str, object]) -> tuple[ModelConfig, ...]:
    named = [{"model": f"m{i}", **item} for i, item in enumerate(items)]
    return serve_config({"models": named}, {}).models


@pytest.mark.parametrize(
    ("items", "machines", "expected"),
    [
        ([{}], {}, [Share(1, 0, 1)]),
        ([{"replicas": 3}], {}, [Share(0.333, 0, 3)]),
        ([{"replicas": 2}, {"replicas": 3}], {}, [Share(0.2, 0, 5)] * 2),
        ([{"replicas": 2}, {"replicas": 3}], {"num_nodes": 2}, [Share(0.333, 0, 3)] * 2),
        ([{"replicas": 2}], {"num_nodes": 2}, [Share(1, 0, 1)]),
        ([{"replicas": 2}], {"num_gpus": 2}, [Share(0.5, 1, 1)]),
        ([{"replicas": 3}], {"num_gpus": 2}, [Share(0.333, 0.5, 2)]),
        ([{"replicas": 7}], {"num_gpus": 3}, [Share(0.142, 0.33, 3)]),
        ([{}, {"replicas": 2, "device": "cpu"}], {"num_gpus": 1}, [(0.333, 1, 1), (0.333, 0, 2)]),
        ([{"device": "cpu"}], {"num_gpus": 8}, [Share(1, 0, 1)]),
    ],
)
def test_what_is_shared_is_counted(items, machines, expected) -> None:
    assert shares(models(*items), **machines) == expected


def test_a_number_that_was_given_stands() -> None:
    free, told = models({}, {"memory_sharers": 1})
    assert shared(free, 4).engine.memory_sharers == 4
    assert shared(told, 4).engine.memory_sharers == 1
