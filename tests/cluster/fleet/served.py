"""A `run` in a process of its own on Ray, as tests start, ask, wound and end it."""

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
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from shoal.cluster.launch import import_path
from shoal.cluster.ports import free_port

START_S = 240.0  # on a machine that is busy with much else
HERE = Path(__file__).parent
ROOT = HERE.parents[2]


def wait(
    condition: Callable[[], object], timeout_s: float = 120.0, every_s: float = 0.05
) -> object:
    """The condition's value once it is true."""
    until = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < until, "the condition never came true"
        time.sleep(every_s)
    return value


CLUSTER = """
import json, os, sys
import ray
from served import descendants, kill
for left in (2, 1, 0):  # Ray gives a node 30 s to start, which is short on a busy machine
    try:
        here = ray.init(object_store_memory=10**8, **json.loads(sys.argv[1]))
        break
    except Exception:
        ray.shutdown()
        if not left:
            raise
        kill(descendants(os.getpid()))  # what had started when it gave up
print("addresses", json.dumps({k: str(v) for k, v in here.address_info.items()}), flush=True)
sys.stdin.read()
"""


@contextmanager
def ray_cluster(**options: object) -> Iterator[dict[str, str]]:
    """A Ray of these options of `ray.init`, whose workers find `scripted`; its addresses."""
    path = os.pathsep.join([str(HERE), import_path()])
    env = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    process = subprocess.Popen(
        [sys.executable, "-c", CLUSTER, json.dumps({"include_dashboard": False} | options)],
        env=env | {"PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        line = next((line for line in process.stdout if line.startswith("addresses")), "")
        assert line, "Ray did not start"
        yield json.loads(line.partition(" ")[2])
    finally:
        pids = descendants(process.pid)
        process.communicate("", timeout=60)
        wait(lambda: gone(pids))


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

    def wait_started(self) -> None:
        """Until it is ready; where it joined a Ray that is not its own, that is all there is."""
        until = time.monotonic() + START_S
        while "is ready" not in self.said():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < until, f"it is not ready: {self.said()}"
            time.sleep(0.05)

    def wait_ready(self) -> Served:
        self.wait_started()
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


ENDLESS = 100_000


class Stream(threading.Thread):
    """Reads `?n=` numbers; `lines` grows as they come."""

    def __init__(self, port: int, n: int) -> None:
        super().__init__(daemon=True)
        self.lines: list[str] = []
        self.leaving = threading.Event()
        self.failure: Exception | None = None
        self.answer = urllib.request.urlopen(f"http://127.0.0.1:{port}/?n={n}", timeout=60)
        self.replica = self.answer.readline().decode().split()[1]
        self.start()

    def run(self) -> None:
        try:
            for line in self.answer:
                self.lines.append(line.decode().strip())
                if self.leaving.is_set():
                    self.answer.close()
                    return
        except Exception as error:
            self.failure = error

    def numbers(self, timeout_s: float = 60.0) -> list[str]:
        self.join(timeout_s)
        assert not self.is_alive() and self.failure is None, self.failure
        return self.lines

    def leave(self) -> None:
        """Hang up on a stream that is whole so far and still goes on."""
        so_far = len(self.lines)
        wait(lambda: len(self.lines) > so_far)
        self.leaving.set()
        assert self.numbers() == [str(i) for i in range(len(self.lines))]


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


def kill(pids: set[int]) -> None:
    """Kill processes, some of which may have ended meanwhile; returns when all have."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait(lambda: gone(pids))


def no_controller(pid: int) -> AbstractContextManager[None]:
    """Inside, Serve decides and starts nothing: its controller, below `pid`, stands still."""
    return standing_still(pid, "ServeController")


def no_head(pid: int) -> AbstractContextManager[None]:
    """Inside, Ray's head, below `pid`, answers nobody."""
    return standing_still(pid, "gcs/gcs_server")


@contextmanager
def standing_still(pid: int, words: str) -> Iterator[None]:
    """Inside, the only process below `pid` with these words in its title is stopped."""
    (found,) = (p for p in descendants(pid) if words in title(p))
    os.kill(found, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(found, signal.SIGCONT)


def replica_of(served: Served, pid: int) -> str:
    """The files of a process name its replica: Serve keeps a log open for each."""
    return " ".join(open_files(pid))


def open_files(pid: int) -> list[str]:
    names = []
    for handle in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            names.append(os.readlink(handle))
    return names
