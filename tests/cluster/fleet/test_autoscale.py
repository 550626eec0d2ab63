"""A served application that follows its load on Ray; the model alone is scripted."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from served import ENDLESS, Served, wait

SCALING = {
    "min_replicas": 0,
    "max_replicas": 2,
    "target_kv_usage": 0.08,
    "scale_down_after_s": 1,
    "scale_to_zero_after_s": 1,
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("scaled")
    served = Served(folder, autoscaling=json.dumps(SCALING))
    try:
        yield served.wait_ready()
    finally:
        served.clean()


def scaling(served: Served) -> list[dict[str, Any]]:
    with urllib.request.urlopen(f"http://127.0.0.1:{served.port}/cluster", timeout=60) as answer:
        return json.load(answer)["scaling"]


def test_an_idle_fleet_sleeps_a_request_wakes_it_and_load_makes_it_grow(served: Served) -> None:
    wait(lambda: not served.replica_pids())
    wait(lambda: served.health() == served.health() | {"status": "ready", "loads": {}})
    assert served.stream(3).numbers() == ["0", "1", "2"]

    streams = [served.stream(ENDLESS) for _ in range(12)]
    wait(lambda: len(served.health()["loads"]) == 2)
    late = served.stream(5)
    assert late.replica not in {stream.replica for stream in streams}
    assert late.numbers() == [str(i) for i in range(5)]
    for stream in streams:
        stream.leave()

    wait(lambda: not served.replica_pids())
    log = served.log_dir / "gateway-0.log"
    for line in (
        "0 -> 1 replica: a request woke it",
        "1 -> 2 replicas: the KV cache is 12% full (target 8%)",
        "1 -> 0 replicas: no request for",
    ):
        assert line in log.read_text()
    (told,) = wait(lambda: (rows := scaling(served))[0]["replicas"] == 0 and rows)
    assert told["model"].endswith("counter")
    assert (told["min_replicas"], told["max_replicas"]) == (0, 2)
    said = [(d["from"], d["to"]) for d in told["decisions"] if d["from"] != d["to"]]
    assert said[:3] == [(1, 0), (0, 1), (1, 2)] and said[-1][1] == 0
    wait(lambda: all(d["line"] in log.read_text() for d in told["decisions"][-2:]))
