"""What a replica gets of a machine, and with whom it shares it."""

from __future__ import annotations

import pytest
from shoal.cluster.config import ModelConfig
from shoal.cluster.settings import serve_config
from shoal.cluster.shares import Share, kept, shared, shares


def models(*items: dict[str, object]) -> tuple[ModelConfig, ...]:
    named = [{"model": f"m{i}", **item} for i, item in enumerate(items)]
    return serve_config({"models": named}, {}).models


SCALES: dict[str, object] = {"autoscaling": {"max_replicas": 4}}


def asks(replicas: int = 1, **options: float) -> dict[str, object]:
    return {"replicas": replicas, "ray_actor_options": options}


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
        ([{"device": "cuda", "replicas": 2}], {}, [Share(0.5, 1, 1)]),
        ([SCALES], {"num_gpus": 1}, [Share(0.25, 1, 1)]),
        ([SCALES, SCALES], {"num_gpus": 1}, [Share(0.125, 0.5, 2)] * 2),
        ([{"tensor_parallel_size": 2, "replicas": 2}], {"num_gpus": 2}, [Share(0.5, 2, 1)]),
        ([{"tensor_parallel_size": 2}, {}], {"num_gpus": 3}, [Share(0.5, 2, 1), Share(0.5, 1, 1)]),
        ([asks(num_gpus=1), {}], {"num_gpus": 1}, [Share(0.5, 1, 1)] * 2),
        ([asks(num_gpus=0.25, replicas=4)], {"num_gpus": 1}, [Share(0.25, 0.25, 4)]),
        ([asks(num_gpus=0)], {"num_gpus": 1}, [Share(1, 0, 1)]),
        ([asks(num_cpus=2, replicas=3)], {"cpus_a_node": 4}, [Share(2, 0, 2)]),
        ([asks(num_cpus=8, replicas=3)], {"cpus_a_node": 4}, [Share(8, 0, 1)]),
    ],
)
def test_what_is_shared_is_counted(items, machines, expected) -> None:
    assert shares(models(*items), **machines) == expected


def test_a_number_that_was_given_stands() -> None:
    free, told = models({}, {"memory_sharers": 1})
    assert shared(free, 4).engine.memory_sharers == 4
    assert shared(told, 4).engine.memory_sharers == 1


def test_what_runs_keeps_its_share_where_that_leaves_enough() -> None:
    third, quarter, gpu = Share(0.333, 0, 3), Share(0.25, 0, 4), Share(0.25, 1, 1)
    fresh, before = [quarter, quarter], [third, None]
    assert kept(fresh, before, [3, 1], {"CPU": 2}) == [third, quarter]
    assert kept(fresh, before, [3, 1], {"CPU": 1}) == fresh
    assert kept([gpu], [third], [1], {"CPU": 2, "GPU": 1}) == [gpu], "it has GPUs now"
    assert kept([quarter], [gpu], [1], {"CPU": 2}) == [quarter], "it has none any more"
