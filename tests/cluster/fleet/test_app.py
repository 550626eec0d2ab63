"""A served application on Ray, with processes really killed; the model alone is scripted."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from scripted import DEADLY
from shoal.cluster.launch import import_path
from shoal.cluster.ports import free_port

HERE = Path(__file__).parent
ROOT = HERE.parents[2]


def wait(condition: Callable[[], object], timeout_s: float = 60.0) -> object:
    """The condition's value once it is true."""
    until = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < until, "the condition never came true"
        time.sleep(0.02)
    return value


class Served:
    """A `run` in a process of its own, in a process group of its own."""

    def __init__(self, folder: Path, **keys: object) -> None:
        self.port = keys.setdefault("port", free_port())
        self.log_dir = folder / "logs"
        model = folder / "counter"
        model.mkdir()
        facts = {"architectures": ["Counter"], "vocab_size": 9, "max_position_embeddings": 9}
        model.joinpath("config.json").write_text(json.dumps(facts))
        shutil.copy(ROOT / "configs" / "tiny" / "tokenizer.json", model)
        words = {"model": model, "log_dir": self.log_dir} | keys
        env = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), import_path()])}
        env.pop("RAY_ADDRESS", None)
        self.output = folder / "output"
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    str(HERE / "scripted.py"),
                    *(f"{k}={v}" for k, v in words.items()),
                ],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=env,
                start_new_session=True,
            )
        self.pids: set[int] = set()

    def wait_ready(self) -> Served:
        wait(lambda: "is ready" in self.said() or self.process.poll() is not None, 180)
        assert self.process.poll() is None, self.said()
        self.pids = descendants(self.process.pid)
        assert self.pids
        return self

    def said(self) -> str:
        return self.output.read_text()

    def health(self) -> dict:
        try:
            url = f"http://127.0.0.1:{self.port}/health"
            with urllib.request.urlopen(url, timeout=5) as answer:
                return json.load(answer)
        except (OSError, ValueError):
            return {"status": "no answer", "loads": {}}

    def stream(self, n: int) -> Stream:
        return Stream(self.port, n)

    def replica_pids(self) -> list[int]:
        return [p for p in descendants(self.process.pid) if "Replica:shoal:counter" in title(p)]

    def signal_group(self, number: int) -> None:
        """As a terminal does it: to the whole process group."""
        os.killpg(self.process.pid, number)

    def clean(self) -> None:
        pids = descendants(self.process.pid) | self.pids
        self.process.kill()
        self.process.wait()
        wait(lambda: gone(pids))


class Stream(threading.Thread):
    """Reads `?n=` numbers; `lines` grows as they come."""

    def __init__(self, port: int, n: int) -> None:
        super().__init__(daemon=True)
        self.lines: list[str] = []
        self.failure: Exception | None = None
        self.answer = urllib.request.urlopen(f"http://127.0.0.1:{port}/?n={n}", timeout=60)
        self.replica = self.answer.readline().decode().split()[1]
        self.start()

    def run(self) -> None:
        try:
            for line in self.answer:
                self.lines.append(line.decode().strip())
        except Exception as error:
            self.failure = error

    def numbers(self, timeout_s: float = 60.0) -> list[str]:
        self.join(timeout_s)
        assert not self.is_alive() and self.failure is None, self.failure
        return self.lines


def descendants(pid: int) -> set[int]:
    """The processes below `pid`."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        if found := state(int(folder.name)):
            children.setdefault(found[1], []).append(int(folder.name))
    found, waiting = set(), [pid]
    while waiting:
        for child in children.get(waiting.pop(), ()):
            found.add(child)
            waiting.append(child)
    return found


def state(pid: int) -> tuple[str, int] | None:
    """A process's state and parent; None where it has ended, waited for or not."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if words[0] in "ZX" else (words[0], int(words[1]))


def title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def gone(pids: set[int]) -> bool:
    return not any(map(state, pids))


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
    assert second.process.wait(30) == 1
    said = second.said()
    assert f"port {served.port} is in use by process" in said and "--port" in said
    assert "start Ray" not in said


def test_a_killed_replica_is_told_at_once_and_replaced(served: Served) -> None:
    wait(lambda: served.health()["status"] == "ready")
    one, other = served.stream(2000), served.stream(1000)
    assert one.replica != other.replica
    victim = next(p for p in served.replica_pids() if one.replica in replica_of(served, p))
    os.kill(victim, signal.SIGKILL)
    assert one.numbers()[-1].startswith("EngineLost: ")
    assert served.health()["status"] == "degraded"
    assert other.numbers() == [str(i) for i in range(1000)]
    assert served.stream(3).numbers() == ["0", "1", "2"]
    wait(lambda: served.health()["status"] == "ready")
    assert len(served.replica_pids()) == 2


def replica_of(served: Served, pid: int) -> str:
    """The files of a process name its replica: Serve keeps a log open for each."""
    return " ".join(open_files(pid))


def open_files(pid: int) -> list[str]:
    names = []
    for handle in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            names.append(os.readlink(handle))
    return names


def test_an_engine_that_dies_ends_its_process_and_is_replaced(served: Served) -> None:
    wait(lambda: served.health()["status"] == "ready")
    before = set(served.replica_pids())
    assert served.stream(DEADLY).numbers()[-1].startswith("EngineLost")
    wait(lambda: set(served.replica_pids()) - before and len(served.replica_pids()) == 2)
    wait(lambda: served.health()["status"] == "ready")
    assert served.stream(2).numbers() == ["0", "1"]


def test_a_killed_gateway_frees_its_generations_and_is_replaced(served: Served) -> None:
    wait(lambda: served.health()["status"] == "ready")
    streams = [served.stream(100_000) for _ in range(4)]
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
    other, own = served.stream(4000), second.stream(400)
    second.signal_group(signal.SIGINT)
    turned_away = wait(lambda: refusal(second.port))
    assert turned_away == 503
    assert own.numbers() == [str(i) for i in range(400)]
    assert second.process.wait(60) == 0, second.said()
    assert "Traceback" not in second.said() and "ray" not in second.said().split("stopping")[1]
    wait(lambda: gone(second.pids), 5)
    assert (second.log_dir / "ray").is_dir() and not (second.log_dir / "ray").is_symlink()
    assert other.numbers() == [str(i) for i in range(4000)]


def refusal(port: int) -> int | None:
    """The status of a new request, where it is an error."""
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/?n=1", timeout=5).read()
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        pytest.fail("the port was closed while a stream was running")
    return None


def test_gateways_of_one_node_share_its_port(start: Callable[..., Served]) -> None:
    served = start(gateways=2).wait_ready()
    seen: set[int] = set()
    wait(lambda: seen.add(served.health()["pid"]) or len(seen) == 2)


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


def test_a_second_signal_ends_everything_at_once(start: Callable[..., Served]) -> None:
    served = start().wait_ready()
    served.stream(100_000)
    served.process.send_signal(signal.SIGTERM)
    wait(lambda: "stopping" in served.said())

    def ended() -> bool:
        served.process.send_signal(signal.SIGTERM)
        return served.process.poll() is not None

    wait(ended)
    assert served.process.returncode == 130
    wait(lambda: gone(served.pids))


def test_a_signal_while_ray_starts_is_obeyed_without_a_word(start: Callable[..., Served]) -> None:
    served = start()
    wait(lambda: any("raylet" in title(pid) for pid in descendants(served.process.pid)))
    served.pids = descendants(served.process.pid)
    served.process.terminate()
    assert served.process.wait(60) in (0, signal.SIGTERM)  # Ray exits with it, we with 0
    assert "SIGTERM" not in served.said() and "start Serve" not in served.said()
    wait(lambda: gone(served.pids))


def test_nothing_outlives_a_killed_driver(served: Served) -> None:
    """The last test of this module: it takes the shared cluster down."""
    served.pids = descendants(served.process.pid)
    served.process.kill()
    served.process.wait()
    wait(lambda: gone(served.pids))


def test_what_serve_is_given_and_changes_nothing_is_said(caplog):
    from shoal.cluster.app import build

    build({"swap-space": 4, "data_parallel_size": 2})
    assert caplog.messages == [
        "swap-space: 4: preempted requests are recomputed, never swapped",
        "data_parallel_size: 2 is `replicas: 2` here",
    ]
