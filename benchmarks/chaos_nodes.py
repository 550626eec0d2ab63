"""Streams while nodes die, links are cut and the head goes, on hosts that are network namespaces.

`python benchmarks/chaos_nodes.py [--streams N] [--faults KIND,..] [--json FILE]`, as root

Two hosts with a Ray node each: the head, with the gateway and a replica, and one that has replicas
alone. Every stream is compared with an undisturbed run. Nodes that are
gone are started again by this program, as `deploy/` has a supervisor do it.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import time
from pathlib import Path

from shoal.cluster import chaos
from shoal.cluster.bench.save import writable
from shoal.cluster.client import Client, ClientError

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "cluster" / "nodes"))

from hosts import Hosts, hosts, wait  # noqa: E402

HEAD, FAR = range(2)
AWAY_S = 5.0
START_S = 600.0
ATTEMPTS = 5
FAULTS = {
    "node": "SIGKILL of all of a node with replicas alone",
    "link": f"link of that node cut for {AWAY_S:g} s",
    "head": f"SIGKILL of the head's GCS, back after {AWAY_S:g} s",
}
PORT = 8000


class Nodes:
    """Strikes hosts, and starts Ray there again."""

    words = FAULTS

    def __init__(self, made: Hosts) -> None:
        self._made = made

    async def strike(self, kind: str, number: int) -> int | None:
        """See `chaos.Faults`; the process is the number of the host."""
        host = HEAD if kind == "head" else FAR
        await asyncio.to_thread(getattr(self, f"_{kind}"), host)
        return host

    def _node(self, host: int) -> None:
        self._made.kill(host)
        wait(lambda: not self._made.pids(host))
        for attempts_left in reversed(range(ATTEMPTS)):  # as a supervisor does
            try:
                return self._made.start_ray(host)
            except AssertionError:
                if not attempts_left:
                    raise

    def _head(self, host: int) -> None:
        line = self._made.kill_gcs()
        time.sleep(AWAY_S)
        self._made.start(host, line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def _link(self, host: int) -> None:
        self._made.cut(host)
        time.sleep(AWAY_S)
        self._made.heal(host)
        wait(lambda: not self._made.has_ray(host))  # the head has given it up, and it obeys
        self._node(host)


def serve(made: Hosts, folder: Path) -> subprocess.Popen[bytes]:
    """`shoal serve` on the head, once it is ready."""
    address = made.address[HEAD]
    line = [
        *(sys.executable, "-m", "shoal", "serve", "--replicas", "3", "--threads", "1"),
        *("--ray-address", made.ray_address, "--host", address, "--port", str(PORT)),
        *("--num-gpu-blocks-override", "2048", "--log-dir", str(folder / "logs")),
    ]
    output = folder / "output"
    with output.open("wb") as to:
        started = made.start(HEAD, line, stdout=to, stderr=subprocess.STDOUT)
    wait(lambda: b"is ready" in output.read_bytes() or started.poll() is not None, START_S)
    assert started.poll() is None, output.read_text()
    return started


def _answers(client: Client) -> bool:
    try:
        return bool(client.model())
    except ClientError:
        return False


def main() -> int:
    """Run and report; 1 where a stream was not the same."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--distinct", type=int, default=60)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--output-len", type=int, default=64)
    parser.add_argument("--every", type=float, default=5.0)
    parser.add_argument("--faults", default=",".join(FAULTS))
    parser.add_argument("--json")
    asked = parser.parse_args()
    plan = chaos.Plan(
        streams=asked.streams,
        distinct=asked.distinct,
        concurrency=asked.concurrency,
        output_len=asked.output_len,
        faults=tuple(asked.faults.split(",")),
        every_s=asked.every,
        timeout_s=180.0,
    )
    file = writable(asked.json, "--json")
    with hosts(2) as made:
        serving = serve(made, made.folder)
        try:
            client = Client(f"http://{made.address[HEAD]}:{PORT}")
            wait(lambda: _answers(client), START_S)
            return 0 if chaos.run(client, plan, Nodes(made), file) else 1
        finally:
            serving.terminate()
            serving.wait()


if __name__ == "__main__":
    sys.exit(main())
