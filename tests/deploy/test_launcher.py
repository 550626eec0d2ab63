"""The files for `ray up`, as Ray reads them, and what keeps Ray running on a node."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .judges import DEPLOY, ROOT, builds_from, loaded, variables

FILES = sorted((DEPLOY / "launcher").glob("*.yaml"))
WAIT_S = 60


def prepared(path: Path) -> Any:
    """The file with Ray's defaults, as `ray up` works with it. Raises what Ray raises."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(loaded(path))
    validate_config(config)
    return config


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_ray_takes_it(path: Path) -> None:
    config = prepared(path)
    assert config["head_node_type"] in config["available_node_types"]
    assert all(node["max_workers"] >= 0 for node in config["available_node_types"].values())


def test_ray_finds_faults(tmp_path: Path) -> None:
    import jsonschema

    path = tmp_path / "spoiled.yaml"
    path.write_text(FILES[0].read_text().replace("setup_commands:", "setup_comands:", 1))
    with pytest.raises(jsonschema.ValidationError, match="setup_comands"):
        prepared(path)


def test_on_premise_has_all_its_machines() -> None:
    config = prepared(DEPLOY / "launcher" / "on-premise.yaml")
    (node,) = config["available_node_types"].values()
    assert node["min_workers"] == node["max_workers"] == len(config["provider"]["worker_ips"]) == 2


def test_on_aws_the_head_takes_no_replicas_and_workers_have_gpus() -> None:
    nodes = prepared(DEPLOY / "launcher" / "aws.yaml")["available_node_types"]
    assert nodes["head"]["resources"] == {"CPU": 0}
    assert nodes["gpu"]["resources"]["GPU"] >= 1 and nodes["gpu"]["min_workers"] >= 1


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_what_is_copied_is_there_and_enough(path: Path) -> None:
    mounts = loaded(path)["file_mounts"]
    ours = {there: here for there, here in mounts.items() if not here.startswith("~")}
    assert all((ROOT / here).exists() for here in ours.values())
    source = {there: here for there, here in ours.items() if there.startswith("~/shoal/src/")}
    assert all(there == f"~/shoal/src/{here}" for there, here in source.items())
    assert builds_from(frozenset(source.values()))
    commands = [
        *loaded(path)["head_start_ray_commands"],
        *loaded(path)["worker_start_ray_commands"],
    ]
    assert all("~/shoal/keep-ray.sh start " in command for command in commands)


@pytest.fixture
def keep_ray(tmp_path: Path) -> Iterator[Callable[..., None]]:
    """keep-ray.sh as it lies on a node, with a `ray` that notes what it is given and waits."""
    folder = tmp_path / "shoal"
    folder.mkdir()
    for name in ("launcher/keep-ray.sh", "ray.env", "ray-head.env"):
        target = folder / Path(name).name
        text = (DEPLOY / name).read_text().replace("/var/lib/shoal/gcs", f"{tmp_path}/gcs")
        target.write_text(text)
        target.chmod(0o755)
    programs = tmp_path / "bin"
    programs.mkdir()
    ray = programs / "ray"
    said = f'{{ echo "$@"; env | grep RAY_; echo "pid $$"; }} >>{tmp_path}/said'
    ray.write_text(f"#!/bin/sh\n{said}\nexec sleep 600\n")
    ray.chmod(0o755)
    env = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "KEEP_RAY_DELAY": "0"}

    def run(*args: str) -> None:
        subprocess.run([str(folder / "keep-ray.sh"), *args], env=env, check=True, timeout=WAIT_S)

    yield run
    run("stop")


def pids(tmp_path: Path, count: int) -> list[int]:
    """The processes of `ray` so far, once there were `count`."""
    said = tmp_path / "said"
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        lines = said.read_text().splitlines() if said.exists() else []
        found = [int(line[4:]) for line in lines if line.startswith("pid ")]
        if len(found) >= count:
            return found
        time.sleep(0.05)
    raise AssertionError(f"ray was not started {count} times: {said.read_text()}")


def alive(pid: int) -> bool:
    """Whether it runs; what has ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except FileNotFoundError:
        return False


def test_ray_is_started_again_until_it_is_stopped(
    keep_ray: Callable[..., None], tmp_path: Path
) -> None:
    keep_ray("start", "--head", "--port=6379")
    (first,) = pids(tmp_path, 1)
    os.kill(first, signal.SIGKILL)
    second = pids(tmp_path, 2)[-1]
    assert alive(second)
    keep_ray("stop")
    assert not alive(second)
    assert len(pids(tmp_path, 2)) == 2
    said = (tmp_path / "said").read_text()
    assert said.startswith("start --block --head --port=6379\n")
    for name, value in variables(DEPLOY / "ray.env").items():
        assert f"{name}={value}\n" in said
    assert "RAY_gcs_storage=rocksdb\n" in said and (tmp_path / "gcs").is_dir()


def test_a_second_start_takes_the_place_of_the_first(
    keep_ray: Callable[..., None], tmp_path: Path
) -> None:
    keep_ray("start", "--address=one:6379")
    (first,) = pids(tmp_path, 1)
    keep_ray("start", "--address=two:6379")
    second = pids(tmp_path, 2)[-1]
    assert not alive(first) and alive(second)
    assert "RAY_gcs_storage" not in (tmp_path / "said").read_text()


def test_a_process_that_has_a_keepers_number_now_is_left_alone(
    keep_ray: Callable[..., None], tmp_path: Path
) -> None:
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as other:
        for args in (("stop",), ("start", "--head")):
            (tmp_path / "shoal" / "keep-ray.pid").write_text(f"{other.pid}\n")
            keep_ray(*args)
        pids(tmp_path, 1)
        left_alone = alive(other.pid)
        other.kill()
    assert left_alone
