"""What a cluster tells of itself, and how a replica that stands still is found and replaced."""

from __future__ import annotations

import json
import os
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from scripted import HANGING
from served import ENDLESS, Served, descendants, gone, wait

ROWS = {"id", "model", "node", "pid", "state", "running", "waiting", "kv_usage", "ranks"}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served(
        tmp_path_factory.mktemp("served"), replicas=2, gateways=2, stall_timeout=5.0, name="told"
    )
    try:
        yield served.wait_ready()
    finally:
        served.clean()


def cluster(served: Served) -> dict[str, Any]:
    with urllib.request.urlopen(f"http://127.0.0.1:{served.port}/cluster", timeout=60) as answer:
        return json.load(answer)


def states(served: Served) -> list[str]:
    return [row["state"] for row in cluster(served)["replicas"]]


def test_every_gateway_tells_of_all_gateways_and_replicas(served: Served) -> None:
    streams = [served.stream(ENDLESS) for _ in range(6)]
    seen: dict[int, list[dict[str, Any]]] = {}

    def told_by_both() -> bool:
        told = cluster(served)
        seen[told["pid"]] = told["gateways"]
        summed = all(sum(g["streams"] for g in gateways) == 6 for gateways in seen.values())
        return len(seen) == 2 and summed

    wait(told_by_both)
    told = cluster(served)
    assert {g["pid"] for g in told["gateways"]} == set(seen)
    assert {g["node"] for g in told["gateways"]} == {"127.0.0.1"}
    assert [set(row) for row in told["replicas"]] == [ROWS, ROWS]
    wait(lambda: states(served) == ["ready", "ready"])
    wait(lambda: sum(row["running"] for row in cluster(served)["replicas"]) == 6)
    for stream in streams:
        stream.leave()
    wait(lambda: not sum(row["running"] for row in cluster(served)["replicas"]))


def test_a_killed_gateway_takes_its_own_connections_along_and_nothing_else(served: Served) -> None:
    wait(lambda: states(served).count("ready") == 2)
    replicas = {row["pid"] for row in cluster(served)["replicas"]}
    streams = []

    def both_have_some() -> list[dict[str, Any]]:
        """The kernel chooses who gets a connection."""
        streams.append(served.stream(ENDLESS))
        told = wait(lambda: sum_is(len(streams)))
        return told if all(gateway["streams"] for gateway in told) else []

    def sum_is(num: int) -> list[dict[str, Any]]:
        told = cluster(served)["gateways"]
        return told if sum(gateway["streams"] for gateway in told) == num else []

    one, other = wait(both_have_some)
    os.kill(one["pid"], signal.SIGKILL)
    wait(lambda: sum(stream.is_alive() for stream in streams) <= other["streams"])
    whole = [stream for stream in streams if stream.is_alive()]
    assert len(whole) == other["streams"]
    for stream in whole:
        stream.leave()
    wait(lambda: not sum(row["running"] for row in cluster(served)["replicas"]))
    wait(lambda: len(cluster(served)["gateways"]) == 2)
    assert {row["pid"] for row in cluster(served)["replicas"]} == replicas


def test_a_replica_whose_engine_hangs_is_named_and_replaced(served: Served) -> None:
    wait(lambda: states(served).count("ready") == 2)
    before = {row["pid"] for row in cluster(served)["replicas"]}
    stream = served.stream(HANGING)
    assert "no progress for" in stream.numbers()[-1]
    log = served.log_dir / f"replica-{replica_rank(served, stream.replica)}.log"
    wait(lambda: "is stuck: no progress for" in log.read_text())
    said = log.read_text()
    assert said.count("is stuck: ") == 1
    assert "in hang" in said  # the stacks
    wait(lambda: states(served).count("ready") == 2)
    assert {row["pid"] for row in cluster(served)["replicas"]} - before
    assert served.stream(2).numbers() == ["0", "1"]


def replica_rank(served: Served, replica: str) -> str:
    logs = sorted(served.log_dir.glob("replica-*.log"))
    found = wait(lambda: [log for log in logs if f"replica {replica} " in log.read_text()])
    return found[0].stem.removeprefix("replica-")


def test_a_stopped_replica_is_shown_as_stalled_and_replaced(served: Served) -> None:
    wait(lambda: states(served).count("ready") == 2)
    victim = next(row for row in cluster(served)["replicas"] if row["state"] == "ready")
    os.kill(victim["pid"], signal.SIGSTOP)
    (row,) = wait(lambda: [r for r in cluster(served)["replicas"] if r["state"] == "stalled"])
    assert row["id"] == victim["id"] and row["pid"] == victim["pid"]

    def replaced() -> bool:
        """Any gateway may answer, and one may notice a moment after the other."""
        ready = {r["pid"] for r in cluster(served)["replicas"] if r["state"] == "ready"}
        return len(ready) == 2 and victim["pid"] not in ready

    wait(replaced, 90)


def test_a_head_is_not_drained(served: Served) -> None:
    for node, why in (("127.0.0.1", "is the head of the Ray cluster"), ("elsewhere", "no node is")):
        with pytest.raises(urllib.error.HTTPError) as refused:
            url = f"http://127.0.0.1:{served.port}/cluster/drain?node={node}"
            urllib.request.urlopen(url, timeout=60)
        assert why in json.load(refused.value)["error"]


def test_a_second_signal_ends_everything_at_once(served: Served) -> None:
    """The last test of this module: it ends the server."""
    wait(lambda: states(served).count("ready") == 2)
    served.stream(ENDLESS)
    served.pids = descendants(served.process.pid)
    served.process.send_signal(signal.SIGTERM)
    wait(lambda: "stopping" in served.said())

    def ended() -> bool:
        served.process.send_signal(signal.SIGTERM)
        return served.process.poll() is not None

    wait(ended)
    assert served.process.returncode == 130
    wait(lambda: gone(served.pids))
