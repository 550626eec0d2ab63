"""A served application on Ray, with processes really killed; the model alone is scripted."""

from __future__ import annotations

import os
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from scripted import DEADLY
from served import ENDLESS, Served, descendants, gone, open_files, replica_of, title, wait
from shoal.cluster import app
from shoal.cluster.config import ServeConfig
from shoal.cluster.ports import free_port
from shoal.cluster.settings import serve_config
from shoal.engine.errors import ConfigError


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served(tmp_path_factory.mktemp("served"), replicas=2)
    try:
        yield served.wait_ready()
    finally:
        served.clean()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    started: list[Served] = []

    def start(**keys: object) -> Served:
        started.append(Served(tmp_path, **keys))
        return started[-1]

    yield start
    for served in started:
        served.clean()


def test_requests_go_to_the_least_loaded_replica(served: Served) -> None:
    wait(lambda: served.health()["status"] == "ready")
    streams = [served.stream(300) for _ in range(6)]
    replicas = [stream.replica for stream in streams]
    assert {replicas.count(r) for r in replicas} == {3}
    assert all(s.numbers() == [str(i) for i in range(300)] for s in streams)


def test_the_terminal_shows_no_chatter_of_ray(served: Served) -> None:
    said = served.said()
    assert "ray" not in said.replace("start Ray", "").lower(), said
    assert (served.log_dir / "ray").is_dir()


def test_nothing_of_it_listens_to_the_network(served: Served) -> None:
    inodes: set[str] = set()
    for pid in descendants(served.process.pid):
        inodes |= {link.removeprefix("socket:[")[:-1] for link in open_files(pid)}
    hosts = set()
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                hosts.add(fields[1].rpartition(":")[0])
    hosts.discard("0" * 32)  # where Serve's replicas take calls from holders of Ray's token
    assert "0100007F" in hosts
    assert hosts <= {"0100007F", "0000000000000000FFFF00000100007F"}


def test_a_port_in_use_is_refused_by_name_before_anything_starts(
    served: Served, start: Callable[..., Served]
) -> None:
    second = start(port=served.port)
    assert second.process.wait(180) == 1
    said = second.said()
    assert f"port {served.port} is in use by process" in said and "--port" in said
    assert "start Ray" not in said


def test_a_killed_replica_is_told_at_once_and_replaced(served: Served) -> None:
    wait(lambda: served.health()["status"] == "ready")
    one, other = served.stream(ENDLESS), served.stream(ENDLESS)
    assert one.replica != other.replica
    victim = next(p for p in served.replica_pids() if one.replica in replica_of(served, p))
    os.kill(victim, signal.SIGKILL)
    assert one.numbers()[-1].startswith("LinkLost: ")
    assert served.health()["status"] == "degraded"
    other.leave()
    assert served.stream(3).numbers() == ["0", "1", "2"]
    wait(lambda: served.health()["status"] == "ready")
    assert len(served.replica_pids()) == 2


def test_an_engine_that_dies_ends_its_process_and_is_replaced(served: Served) -> None:
    wait(lambda: served.health()["status"] == "ready")
    before = set(served.replica_pids())
    assert served.stream(DEADLY).numbers()[-1].startswith("LinkLost")
    wait(lambda: set(served.replica_pids()) - before and len(served.replica_pids()) == 2)
    wait(lambda: served.health()["status"] == "ready")
    assert served.stream(2).numbers() == ["0", "1"]


def test_a_killed_gateway_frees_its_generations_and_is_replaced(served: Served) -> None:
    wait(lambda: served.health()["status"] == "ready")
    streams = [served.stream(ENDLESS) for _ in range(4)]
    before = served.health()
    os.kill(before["pid"], signal.SIGKILL)
    after = wait(lambda: (h := served.health())["status"] == "ready" and h)
    assert after["pid"] != before["pid"] and after["aborted"] >= 4
    wait(lambda: sum(served.health()["loads"].values()) == 0)
    assert all(wait(lambda s=stream: not s.is_alive()) for stream in streams)


def test_what_ray_says_of_the_dead_is_in_the_log_and_not_in_the_terminal(served: Served) -> None:
    wait(lambda: "raylet: A worker died" in served.log_dir.joinpath("serve.log").read_text())
    assert "raylet" not in served.said()


def test_one_of_two_stops_on_ctrl_c_when_its_streams_have_ended(
    served: Served, start: Callable[..., Served]
) -> None:
    second = start().wait_ready()
    other, own = served.stream(ENDLESS), second.stream(400)
    second.signal_group(signal.SIGINT)
    turned_away = wait(lambda: refusal(second.port))
    assert turned_away == 503
    assert own.numbers() == [str(i) for i in range(400)]
    assert second.process.wait(180) == 0, second.said()
    assert "Traceback" not in second.said() and "ray" not in second.said().split("stopping")[1]
    wait(lambda: gone(second.pids), 5)
    assert (second.log_dir / "ray").is_dir() and not (second.log_dir / "ray").is_symlink()
    other.leave()


def refusal(port: int) -> int | None:
    """The status of a new request, where it is an error."""
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/?n=1", timeout=60).read()
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        pytest.fail("the port was closed while a stream was running")
    return None


def test_a_start_that_fails_says_why_and_leaves_nothing(start: Callable[..., Served]) -> None:
    served = start(dtype="bfloat16")
    pids = set()
    while served.process.poll() is None:
        pids |= descendants(served.process.pid)
        time.sleep(0.05)
    assert served.process.returncode == 1
    last = served.said().splitlines()[-1]
    assert last == "error: ConfigError: the model needs 9 GB and 3 GB are free; try --dtype half"
    assert "Traceback" not in served.said()
    assert pids and gone(pids)


def test_a_signal_while_ray_starts_is_obeyed_without_a_word(start: Callable[..., Served]) -> None:
    served = start()
    wait(lambda: any("raylet" in title(pid) for pid in descendants(served.process.pid)))
    served.pids = descendants(served.process.pid)
    served.process.terminate()
    assert served.process.wait(180) in (0, signal.SIGTERM)  # Ray exits with it, we with 0
    assert "SIGTERM" not in served.said() and "start Serve" not in served.said()
    wait(lambda: gone(served.pids))


def test_nothing_outlives_a_killed_driver(served: Served) -> None:
    """The last test of this module: it takes the shared cluster down."""
    served.pids = descendants(served.process.pid)
    served.process.kill()
    served.process.wait()
    wait(lambda: gone(served.pids))


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"tensor_parallel_size": 3}, "tensor_parallel_size=3 cannot cut the model's 8 q_proj"),
        ({"pipeline_parallel_size": 7}, "pipeline_parallel_size=7 is more than the model's 6"),
        ({"tensor_parallel_size": 4, "device": "cuda"}, "needs 4 GPUs, and 2 are visible"),
        ({"tensor_parallel_size": 4}, "needs 4 GPUs, and 2 are visible"),
    ],
)
def test_what_this_machine_alone_tells_is_refused_before_ray_is_started(
    keys: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def started(config: ServeConfig) -> None:
        raise AssertionError("Ray is started")

    gpus = 2 if "GPU" in said else 0
    monkeypatch.setattr(app.placement, "gpus_here", lambda: gpus)
    monkeypatch.setattr(app, "_ray", started)
    monkeypatch.setattr(app.logs, "start", lambda config, name, terminal: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    asked = {"model": "shoal-tiny", "port": free_port()}
    with pytest.raises(ConfigError, match=said):
        app.run(serve_config(asked | keys, {}))


def test_what_serve_is_given_and_changes_nothing_is_said(caplog):
    from shoal.cluster.app import build

    build({"swap-space": 4, "data_parallel_size": 2})
    assert caplog.messages == [
        "swap-space: 4: preempted requests are recomputed, never swapped",
        "data_parallel_size: 2 is `replicas: 2` here",
    ]
