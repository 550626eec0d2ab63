"""`serve deploy` of a changed file, under streams; the models alone are scripted."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
import yaml
from callers import Streams, chunks
from served import ENDLESS, ray_cluster, wait
from shoal.cluster.ports import free_port


class Cluster:
    """A Ray that takes configurations, and the door that they open."""

    def __init__(self, folder: Path, model: Path, dashboard: str) -> None:
        self.folder, self.model, self.dashboard = folder, model, dashboard
        self.port = free_port()
        self.deployed = False

    def deploy(self, *models: dict[str, Any], **keys: Any) -> None:
        """`serve deploy`, until all that it asks for is there.

        After the first time what the command would send is sent without its start.
        """
        args = {"models": [{"model": str(self.model), "max-model-len": 1024, **m} for m in models]}
        args |= {"port": self.port, "log-dir": str(self.folder / "logs"), **keys}
        app = {"name": "shoal", "import_path": "scripted:build", "args": args}
        config = {"proxy_location": "Disabled", "applications": [app]}
        if self.deployed:
            url = f"{self.dashboard}/api/serve/applications/"
            httpx.put(url, json=config, timeout=240).raise_for_status()
        else:
            file = self.folder / "serve.yaml"
            file.write_text(yaml.safe_dump(config))
            line = [sys.executable, "-m", "ray.serve.scripts", "deploy", "-a", self.dashboard, file]
            subprocess.run(line, check=True, capture_output=True, timeout=240)
            self.deployed = True
        wait(self.is_through, 240, every_s=0.25)

    def is_through(self) -> bool:
        """Whether the last file is in force, and nothing of an earlier one is left."""
        told = httpx.get(f"{self.dashboard}/api/serve/applications/", timeout=60).json()
        app = told["applications"].get("shoal", {})
        assert app.get("status") not in ("DEPLOY_FAILED", "UNHEALTHY"), json.dumps(app, indent=1)
        if app.get("status") != "RUNNING":
            return False
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}/health").json()["status"] == "ready"
        except (httpx.HTTPError, ValueError):
            return False

    def overview(self) -> dict[str, Any]:
        return httpx.get(f"http://127.0.0.1:{self.port}/cluster", timeout=60).json()

    def pids(self) -> dict[str, list[int]]:
        """The processes of each model."""
        told = self.overview()
        found: dict[str, list[int]] = {"gateway": [g["pid"] for g in told["gateways"]]}
        for row in told["replicas"]:
            if row["state"] == "ready":
                found.setdefault(row["model"], []).append(row["pid"])
        return {name: sorted(pids) for name, pids in found.items()}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("deployed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        options = {"include_dashboard": True, "dashboard_port": free_port()}
        with ray_cluster(num_cpus=2, **options) as addresses:
            yield Cluster(folder, tiny_model, f"http://{addresses['webui_url']}")


A, B, C = ({"served-model-name": name} for name in "abc")


def test_a_changed_file_rolls_under_streams(cluster: Cluster) -> None:
    cluster.deploy(A | {"replicas": 2}, B)
    before = cluster.pids()
    streams = [Streams(cluster.port, "a"), Streams(cluster.port, "b", num=1)]

    cluster.deploy(A | {"replicas": 2, "max-num-seqs": 99}, B)
    rolled = cluster.pids()
    assert not set(rolled["a"]) & set(before["a"]) and len(rolled["a"]) == 2
    assert (rolled["b"], rolled["gateway"]) == (before["b"], before["gateway"])

    cluster.deploy(A | {"replicas": 2, "max-num-seqs": 99}, B, C)
    added = cluster.pids()
    assert (added["a"], added["b"]) == (rolled["a"], rolled["b"]) and len(added["c"]) == 1
    assert added["gateway"] != rolled["gateway"]
    more = Streams(cluster.port, "c", num=1)

    streams.pop().end()
    door = {"max-body-bytes": 10**6, "drain-grace": 1.0}  # no replica is another one for these
    cluster.deploy(C, A | {"replicas": 1, "max-num-seqs": 99}, **door)
    left = cluster.pids()
    assert left["gateway"] != added["gateway"]
    assert left["c"] == added["c"] and set(left["a"]) < set(added["a"]) and "b" not in left
    for stream in (*streams, more):
        stream.end()


SOON = {"shutdown-timeout": 1, "failover-timeout": 600}


def test_streams_that_nobody_will_take_over_get_the_time_of_a_stop(cluster: Cluster) -> None:
    """Their door waits for no replica, as it would if one were only lost: not of a model that is
    removed, nor, at an old gateway or at one that stays, of weights that are replaced.
    """
    cluster.deploy(A, B, **SOON)
    ending = Ending(cluster, "b")
    cluster.deploy(A, **SOON)
    assert "`b` is served no more" in ending.words()

    for dtype, door in ("float16", SOON), ("float32", SOON | {"max-body-bytes": 10**6}):
        gateways, ending = cluster.pids()["gateway"], Ending(cluster, "a")
        cluster.deploy(A | {"dtype": dtype}, **door)
        assert "`a` is served with other weights now" in ending.words()
        assert (cluster.pids()["gateway"] == gateways) is (door is SOON)


class Ending:
    """A stream that has begun and is read till it fails."""

    def __init__(self, cluster: Cluster, model: str) -> None:
        self.told: list[dict[str, Any]] = []
        stream = chunks(cluster.port, model, ENDLESS)
        self.reading = threading.Thread(target=lambda: self.told.extend(stream), daemon=True)
        self.reading.start()
        wait(lambda: len(self.told) > 9)

    def words(self) -> str:
        self.reading.join(60)
        assert not self.reading.is_alive()
        return str(self.told[-1]["error"]["message"])


def test_models_scale_apart_and_take_new_bounds_as_they_are(cluster: Cluster) -> None:
    scaling = {
        "min_replicas": 0,
        "max_replicas": 2,
        "target_kv_usage": 0.02,
        "scale_down_after_s": 1,
        "scale_to_zero_after_s": 1,
    }
    cluster.deploy(*(model | {"autoscaling": scaling} for model in (A, B)))
    streams = Streams(cluster.port, "a", num=4)
    wait(lambda: len((there := cluster.pids()).get("a", [])) == 2 and "b" not in there)
    before = cluster.pids()
    cluster.deploy(A | {"autoscaling": scaling | {"scale_down_after_s": 60}}, B)
    after = cluster.pids()
    streams.end()
    assert set(before["a"]) & set(after["a"]) and len(after["b"]) == 1, "none was restarted for it"
    (told,) = cluster.overview()["scaling"]
    assert (told["model"], told["max_replicas"]) == ("a", 2), "the other one scales no more"


def test_where_a_reckoned_place_is_taken_an_old_replica_drains_first(cluster: Cluster) -> None:
    """As where another application has it by then: two replicas have both places."""
    whole = A | {"replicas": 2, "ray_actor_options": {"num_cpus": 1}}
    cluster.deploy(whole)
    before = cluster.pids()
    streams = Streams(cluster.port, "a")
    cluster.deploy(whole | {"max-num-seqs": 99}, **{"placement-timeout": 1, "room": "pretended"})
    wait(lambda: len(cluster.pids()["a"]) == 2)
    streams.end()
    assert not set(before["a"]) & set(cluster.pids()["a"])
