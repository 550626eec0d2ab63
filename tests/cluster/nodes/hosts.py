"""Several hosts on one machine: a network namespace each, joined by a bridge, with a node of Ray.

Needs root and iproute2. Everything is taken down again, however a test ends.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from shoal.cluster.launch import import_path

PORT = 6379
START_S = 180.0
RAY = """
from ray._private import services
from ray.scripts import scripts
services.find_gcs_addresses = set
scripts.main()
"""
"""The command `ray`, which would take what it sees of other hosts for a Ray of its own."""
QUICK = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "600",
    "RAY_gcs_storage": "rocksdb",
}


class Hosts:
    """`num` hosts, the first with Ray's head; `address[i]` is that of host i."""

    def __init__(self, num: int) -> None:
        self.name = f"sh{os.getpid() % 100000}"
        self.subnet = f"10.{77 + os.getpid() % 100}.{os.getpid() // 100 % 250}"
        self.folder = Path(tempfile.mkdtemp(prefix="shoal-hosts-", dir="/tmp"))
        self.address = [f"{self.subnet}.{10 + i}" for i in range(num)]
        self.ray_address = f"{self.address[0]}:{PORT}"

    def up(self) -> None:
        """Make the hosts and start Ray on each."""
        ip(f"link add br{self.name} type bridge")
        ip(f"addr add {self.subnet}.1/24 dev br{self.name}")
        ip(f"link set br{self.name} up")
        for i in range(len(self.address)):
            self._add(i)
        for i in range(len(self.address)):
            self.start_ray(i)

    def start_ray(self, i: int, **env: str) -> None:
        """Start the node of host i."""
        where = ["--head", f"--port={PORT}", "--include-dashboard=false"]
        if i:
            where = [f"--address={self.ray_address}"]
        line = [
            *(sys.executable, "-c", RAY, "start", *where),
            *(f"--node-ip-address={self.address[i]}", f"--temp-dir={self.folder}/n{i}"),
            *("--num-cpus=2", f"--object-store-memory={80 << 20}", "--disable-usage-stats"),
        ]
        with (self.folder / f"n{i}.log").open("w") as log:
            started = self.start(i, line, stdout=log, stderr=log, env=env)
        assert started.wait(START_S) == 0, (self.folder / f"n{i}.log").read_text()

    def start(self, i: int, line: list[str], env: dict[str, str] | None = None, **more: object):
        """Start a command on host i."""
        known = {
            "PYTHONPATH": import_path(),
            "RAY_AUTH_MODE": "disabled",
            "RAY_ADDRESS": self.ray_address,
            "RAY_TMPDIR": str(self.folder / f"n{i}"),
        }
        inside = ["ip", "netns", "exec", self._host(i), *line]
        kept = {"RAY_gcs_storage_path": str(self.folder / "gcs")}
        env = os.environ | QUICK | kept | known | (env or {})
        return subprocess.Popen(inside, cwd=self.folder, env=env, **more)

    def run(self, i: int, line: list[str], timeout_s: float = 60.0) -> subprocess.CompletedProcess:
        """Run a command on host i to its end."""
        started = self.start(i, line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            out, err = started.communicate(timeout=timeout_s)
        finally:
            started.kill()
        return subprocess.CompletedProcess(line, started.returncode, out, err)

    def cut(self, i: int) -> None:
        """Take host i off the network."""
        ip(f"link set v{self.name}{i} down")

    def heal(self, i: int) -> None:
        """Put host i on the network again."""
        ip(f"link set v{self.name}{i} up")

    def kill_gcs(self) -> list[str]:
        """Kill the GCS alone; its command line, by which `start` brings it back."""
        (pid,) = (pid for pid in self.pids(0) if "gcs/gcs_server" in command(pid)[0])
        line = command(pid)
        os.kill(pid, signal.SIGKILL)
        return line

    def has_ray(self, i: int) -> bool:
        """Whether the node of host i lives: one that was cut off ends itself."""
        return any("raylet/raylet" in command(pid)[0] for pid in self.pids(i))

    def kill(self, i: int, number: int = signal.SIGKILL) -> None:
        """Send a signal to everything that runs on host i."""
        for pid in self.pids(i):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def end(self, i: int) -> None:
        """Kill what runs on host i, until nothing is left of it."""
        wait(lambda: self.kill(i) or not self.pids(i))

    def pids(self, i: int) -> list[int]:
        """The processes of host i."""
        return [int(word) for word in ip(f"netns pids {self._host(i)}", check=False).split()]

    def down(self) -> None:
        """Take everything down; harmless when repeated."""
        for i in range(len(self.address)):
            with contextlib.suppress(AssertionError):  # the others are taken down all the same
                self.end(i)
            ip(f"link del v{self.name}{i}", check=False)
            ip(f"netns del {self._host(i)}", check=False)
        ip(f"link del br{self.name}", check=False)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _host(self, i: int) -> str:
        return f"{self.name}-n{i}"

    def _add(self, i: int) -> None:
        host, wire = self._host(i), f"v{self.name}{i}"
        ip(f"netns add {host}")
        ip(f"link add {wire} type veth peer name eth0 netns {host}")
        ip(f"link set {wire} master br{self.name} up")
        ip(f"-n {host} addr add {self.address[i]}/24 dev eth0")
        ip(f"-n {host} link set lo up")
        ip(f"-n {host} link set eth0 up")
        ip(f"-n {host} route add default via {self.subnet}.1")  # Ray asks by which it goes out
        (self.folder / f"n{i}").mkdir()


def command(pid: int) -> list[str]:
    """The words that a process was started with."""
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        return words[:-1] or [""]  # one that has ended has none
    return [""]


def ip(words: str, *, check: bool = True) -> str:
    """Run ip(8)."""
    done = subprocess.run(["ip", *words.split()], capture_output=True, text=True)
    assert done.returncode == 0 or not check, f"ip {words}: {done.stderr}"
    return done.stdout


@contextlib.contextmanager
def hosts(num: int) -> Iterator[Hosts]:
    """Inside, there are `num` hosts."""
    made = Hosts(num)
    try:
        made.up()
        yield made
    finally:
        made.down()


def wait(condition: Callable[[], object], timeout_s: float = 90.0) -> object:
    """The condition's value once it is true."""
    until = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < until, "the condition never came true"
        time.sleep(0.05)
    return value
