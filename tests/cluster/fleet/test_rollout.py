"""A configuration that replaces another on a Ray that runs; the model alone is scripted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from callers import Streams
from served import ENDLESS, START_S, Served, no_controller, no_head, ray_cluster, wait
from shoal.cluster.launch import import_path
from shoal.cluster.ports import free_port

RESOURCES = {"shelf": 2, "accelerator_type:Abacus": 1}
LOOK = """
import json, sys
import ray
ray.init(sys.argv[1], log_to_driver=False, logging_level="ERROR")
from ray._private.state import actors
states = [actor["State"] for actor in actors().values()]
print(json.dumps({"free": ray.available_resources(), "states": states}))
"""


def look(address: str) -> dict[str, Any]:
    """What nobody has taken of a cluster, and the states of its actors."""
    line = [sys.executable, "-c", LOOK, address]
    return json.loads(subprocess.run(line, capture_output=True, check=True, timeout=60).stdout)


def replica_for_a_new_one(served: Served) -> str | None:
    """None where the old replica takes nothing new and the door has not reached the new one."""
    try:
        return served.stream(1).replica
    except urllib.error.HTTPError as refused:
        assert refused.code == 503
        return None


@pytest.fixture(scope="module")
def ray_address() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        with ray_cluster(num_cpus=2, resources=RESOURCES) as addresses:
            yield addresses["gcs_address"]


def test_a_changed_configuration_rolls_and_its_driver_takes_over(
    ray_address: str, tmp_path: Path
) -> None:
    keys = {"port": free_port(), "ray_address": ray_address, "served_model_name": "counter"}
    folders = [tmp_path / name for name in ("first", "second")]
    for folder in folders:
        folder.mkdir()
    started = [first := Served(folders[0], **keys, max_num_seqs=8)]
    try:
        first.wait_started()
        stream = first.stream(ENDLESS)
        with no_controller(os.getpid()):
            started.append(second := Served(folders[1], **keys, max_num_seqs=16))
            wait(lambda: "controller does not answer" in second.said())
        wait(lambda: replica_for_a_new_one(first) not in (None, stream.replica))
        stream.leave()
        second.wait_started()
        assert "roll to this configuration" in second.said()
        new = second.stream(3)
        assert new.replica != stream.replica and new.numbers() == ["0", "1", "2"]
        assert first.process.wait(180) == 0
        assert "has taken shoal over" in first.said()
        assert second.stream(3).numbers() == ["0", "1", "2"]
        with no_head(os.getpid()):
            wait(lambda: "does not answer. What runs goes on" in second.said())
            assert second.stream(3).numbers() == ["0", "1", "2"]
        wait(lambda: "answers again" in second.said())
        assert second.said().count("the head of Ray") == 2
        second.process.terminate()
        assert second.process.wait(180) == 0
        assert set(look(ray_address)["states"]) == {"DEAD"}
    finally:
        for served in started:
            served.process.kill()
            served.process.wait()


@pytest.fixture
def pair(ray_address: str, tmp_path: Path) -> Iterator[list[Served]]:
    """Two applications on one Ray, `first` and `second`."""
    started: list[Served] = []
    try:
        for name in ("first", "second"):
            (folder := tmp_path / name).mkdir()
            started.append(Served(folder, name=name, ray_address=ray_address))
            started[-1].wait_started()
        yield started
    finally:
        for served in started:
            served.process.terminate()
        for served in started:
            served.process.wait(180)


def test_one_that_ends_leaves_the_application_of_another_alone(
    pair: list[Served], ray_address: str
) -> None:
    """Also the one for which Serve was started; the last one ends it."""
    for served in pair:
        assert pair[-1].stream(3).numbers() == ["0", "1", "2"]
        served.process.terminate()
        assert served.process.wait(180) == 0
    assert set(look(ray_address)["states"]) == {"DEAD"}


def test_one_whose_application_is_taken_off_says_so_and_ends(
    pair: list[Served], ray_address: str, tmp_path: Path
) -> None:
    """Those of others stay."""
    first, second = pair
    line = [sys.executable, "-m", "shoal", "stop", "first", "--ray-address", ray_address]
    env = os.environ | {"PYTHONPATH": import_path()}
    subprocess.run(line, check=True, timeout=180, env=env, cwd=tmp_path)
    assert first.process.wait(180) == 0
    assert first.said().splitlines()[-1].strip() == "first was taken off its Ray"
    assert second.stream(3).numbers() == ["0", "1", "2"]
    assert second.process.poll() is None


def test_told_to_end_it_waits_for_no_replica_without_a_place(
    ray_address: str, tmp_path: Path, tiny_model: Path
) -> None:
    """Serve would give it the time that streams have."""
    models = [{"served_model_name": "a"}, {"served_model_name": "b", "resources": {"shelf": 3}}]
    served = Served(
        tmp_path,
        models=json.dumps([{"model": str(tiny_model)} | model for model in models]),
        ray_address=ray_address,
        shutdown_timeout=600,
    )
    try:
        wait(lambda: served.health()["loads"], START_S)
        assert "PENDING_CREATION" in look(ray_address)["states"]
        served.process.terminate()
        assert served.process.wait(180) == 0
        assert set(look(ray_address)["states"]) == {"DEAD"}
    finally:
        served.process.kill()
        served.process.wait()


def test_told_to_end_while_the_head_is_away_it_takes_all_off_once_that_is_back(
    ray_address: str, tmp_path: Path
) -> None:
    served = Served(tmp_path, ray_address=ray_address)
    try:
        served.wait_started()
        with no_head(os.getpid()):
            served.process.terminate()
            wait(lambda: "to be back" in served.said())
        assert served.process.wait(180) == 0
        assert "nothing is taken off" not in served.said()
        assert set(look(ray_address)["states"]) == {"DEAD"}
    finally:
        served.process.kill()
        served.process.wait()


def test_without_room_for_one_more_an_old_replica_drains_first(
    ray_address: str, tmp_path: Path
) -> None:
    """Two replicas have both places. It is pretended that there is a third, until a bound."""
    options = {"num_cpus": 0.25, "runtime_env": {"env_vars": {"SHELVED": "yes"}}}
    keys = {
        "port": free_port(),
        "ray_address": ray_address,
        "served_model_name": "counter",
        "replicas": 2,
        "resources": json.dumps({"shelf": 1}),
        "accelerator_type": "Abacus",
        "ray_actor_options": json.dumps(options),
        "door": "real",
    }
    folders = [tmp_path / name for name in ("first", "elsewhere", "second")]
    for folder in folders:
        folder.mkdir()
    started = [Served(folders[0], **keys, placement_timeout=180)]
    try:
        started[0].wait_started()
        left = look(ray_address)["free"]
        assert "shelf" not in left and left["CPU"] == 1.5
        assert 0.99 < left["accelerator_type:Abacus"] < 1
        told = httpx.get(f"http://127.0.0.1:{keys['port']}/cluster").json()
        for row in told["replicas"]:
            assert b"SHELVED=yes" in Path(f"/proc/{row['pid']}/environ").read_bytes()

        other = keys | {"name": "other", "port": free_port(), "accelerator_type": "Loom"}
        started.append(Served(folders[1], **other, placement_timeout=2))
        assert started[1].process.wait(180) == 1
        said = started[1].said()
        assert "0 shelf" in said and "0 accelerator_type:Loom" in said

        streams = Streams(keys["port"], "counter")
        started.append(
            Served(folders[2], **keys, max_num_seqs=99, placement_timeout=3, room="pretended")
        )
        started[2].wait_started()
        streams.end()
        assert "an old one drains first" in started[2].said()
        after = httpx.get(f"http://127.0.0.1:{keys['port']}/cluster").json()
        ready = {row["pid"] for row in after["replicas"] if row["state"] == "ready"}
        assert len(ready) == 2 and not ready & {row["pid"] for row in told["replicas"]}
        wait(lambda: started[0].process.poll() is not None)
        with no_controller(os.getpid()):  # as where the head's node is gone
            started[2].process.terminate()
            assert started[2].process.wait(180) == 0
        assert started[2].said().count("does not answer: nothing is taken off") == 1
        (folder := tmp_path / "again").mkdir()
        started.append(Served(folder, **keys, max_num_seqs=99))
        started[3].wait_started()
        with no_head(os.getpid()):
            started[3].process.terminate()
            assert started[3].process.wait(180) == 0
        assert "head of Ray does not answer: nothing is taken off it" in started[3].said()
        command = f"shoal stop shoal --ray-address {ray_address}"
        assert started[3].said().strip().endswith(command)
        ended = subprocess.run(
            [sys.executable, "-m", *command.split()],
            env=os.environ | {"PYTHONPATH": import_path()},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert ended.returncode == 0 and "shoal is taken off" in ended.stderr, ended.stderr
        assert set(look(ray_address)["states"]) == {"DEAD"}
    finally:
        for served in started:
            served.process.kill()
            served.process.wait()
