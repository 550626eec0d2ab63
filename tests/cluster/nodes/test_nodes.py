"""One application on two hosts: ranks on both, a lost link, a drained node, another version."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from hosts import Hosts, hosts, wait

pytestmark = pytest.mark.netns

TINY = Path(__file__).resolve().parents[3] / "configs" / "tiny"
CHECKS = ("versions", "clock", "network", "interface", "shared memory", "checkpoint")
PROMPT = {"model": "tiny", "prompt": "Once upon a time", "max_tokens": 40, "temperature": 0}


@pytest.fixture(scope="module")
def two() -> Iterator[Hosts]:
    with hosts(2) as made:
        yield made


@pytest.fixture(scope="module")
def text() -> str:
    """What one process answers to PROMPT."""
    from shoal import LLM, SamplingParams

    keys = {"max_model_len": 256, "num_gpu_blocks_override": 64, "threads": 1}
    llm = LLM(str(TINY), dtype="float32", **keys)
    params = SamplingParams(temperature=0, max_tokens=PROMPT["max_tokens"])
    return llm.generate([PROMPT["prompt"]], params)[0].outputs[0].text


class Served:
    """`shoal serve` on a host."""

    def __init__(
        self, made: Hosts, folder: Path, *flags: str, port: int = 8000, host: int = 0
    ) -> None:
        self.url = f"http://{made.address[host]}:{port}"
        self.log_dir = folder / "logs"
        self.output = folder / "output"
        line = [
            *(sys.executable, "-m", "shoal", "serve", str(TINY), "--served-model-name", "tiny"),
            *("--ray-address", made.ray_address, "--host", made.address[host]),
            *("--port", str(port)),
            *("--max-model-len", "256", "--num-gpu-blocks-override", "64", "--threads", "1"),
            *("--dtype", "float32", "--log-dir", str(self.log_dir), *flags),
        ]
        with self.output.open("w") as output:
            self.process = made.start(host, line, stdout=output, stderr=subprocess.STDOUT)

    def ready(self) -> Served:
        wait(lambda: "is ready" in self.said() or self.process.poll() is not None, 150)
        assert self.process.poll() is None, self.said()
        return self

    def said(self) -> str:
        return self.output.read_text()

    def ask(self, path: str, body: object = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        asked = urllib.request.Request(self.url + path, data, headers)
        with urllib.request.urlopen(asked, timeout=60) as answer:
            return json.load(answer)

    def text(self) -> str:
        return self.ask("/v1/completions", PROMPT)["choices"][0]["text"]

    def replicas(self) -> list[dict[str, Any]]:
        return self.ask("/cluster")["replicas"]

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            assert self.process.wait(180) == 0, self.said()
        finally:
            self.process.kill()


@pytest.fixture
def serve(two: Hosts, tmp_path: Path) -> Iterator[Callable[..., Served]]:
    started: list[Served] = []

    def serve(*flags: str) -> Served:
        started.append(Served(two, tmp_path, *flags))
        return started[-1].ready()

    yield serve
    for served in started:
        if served.process.poll() is None:
            served.stop()


OTHER = """
import ray, sys
from ray import serve
ray.init(address="auto", log_to_driver=False)
if sys.argv[1] == "start":
    class Other:
        def __call__(self): return "still here"
    serve.start(proxy_location="Disabled")
    app = serve.deployment(Other).options(ray_actor_options={"num_cpus": 0}).bind()
    serve.run(app, name="other", route_prefix=None)
else:
    print(list(serve.status().applications))
    print(serve.get_app_handle("other").remote().result(timeout_s=20))
    serve.shutdown()
"""


def test_a_pipeline_over_two_hosts_gives_one_host_s_text_beside_another_application(
    two: Hosts, serve: Callable[..., Served], text: str
) -> None:
    started = two.run(0, [sys.executable, "-c", OTHER, "start"])
    assert started.returncode == 0, started.stderr
    served = serve("--pipeline-parallel-size", "2", "--placement-strategy", "STRICT_SPREAD")
    assert served.text() == text
    (replica,) = served.replicas()
    assert [rank["node"] for rank in replica["ranks"]] == two.address

    def told() -> bool:
        return all(r["last_step_s"] is not None for r in served.replicas()[0]["ranks"])

    wait(told)  # ranks say how far they are twice a second
    served.stop()
    there = two.run(0, [sys.executable, "-c", OTHER, "end"])
    assert there.stdout.splitlines() == ["['other']", "still here"], there.stderr


def test_a_drained_node_is_left_without_breaking_a_stream(
    two: Hosts, serve: Callable[..., Served], text: str
) -> None:
    served = serve("--replicas", "2")
    wait(lambda: {row["node"] for row in served.replicas()} == set(two.address))
    streams = [Answer(served) for _ in range(4)]
    assert served.ask("/cluster/drain", {"node": two.address[1]})["status"] == "draining"

    def left() -> bool:
        ready = [row["node"] for row in served.replicas() if row["state"] == "ready"]
        return ready == [two.address[0]] * 2

    wait(left)
    assert all(stream.text() == text for stream in streams)
    two.kill(1)
    two.start_ray(1)


def test_another_version_of_shoal_is_refused_by_the_node_s_name(two: Hosts, tmp_path: Path) -> None:
    other = tmp_path / "other" / "shoal"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text('__version__ = "0.0.1"\n')
    two.kill(1)
    two.start_ray(1, PYTHONPATH=str(other.parent))
    served = Served(two, tmp_path)
    assert served.process.wait(180) == 2
    assert f"{two.address[1]} has shoal 0.0.1" in served.said()
    assert two.address[0] not in served.said().split("must have it")[1]
    examined, found = doctor(two)
    assert examined.returncode == 1
    (broken,) = [f for f in found if f["level"] == "failure"]
    assert (broken["check"], broken["node"]) == ("versions", two.address[1])
    assert broken["fix"].startswith("pip install shoal==")
    two.kill(1)
    two.start_ray(1)


def doctor(two: Hosts, *args: str) -> tuple[Any, list[dict[str, Any]]]:
    """What `shoal doctor` says on host 0, and its findings."""
    line = [sys.executable, "-m", "shoal", "doctor", "--json", *args]
    examined = two.run(0, [*line, "--ray-address", two.ray_address], 120)
    assert examined.returncode in (0, 1), examined.stderr
    return examined, json.loads(examined.stdout)


def test_the_doctor_sees_both_hosts_the_way_between_them_and_ranks_on_both(
    two: Hosts, tmp_path: Path
) -> None:
    keys = {"model": str(TINY), "tensor-parallel-size": 2, "placement-strategy": "STRICT_SPREAD"}
    file = tmp_path / "two.yaml"
    file.write_text("".join(f"{key}: {value}\n" for key, value in keys.items()))
    examined, found = doctor(two, str(file))
    assert examined.returncode == 0, found
    nodes = {check: [f["node"] for f in found if f["check"] == check] for check in CHECKS}
    for check in ("versions", "clock", "interface", "shared memory", "checkpoint"):
        assert sorted(nodes[check]) == two.address
    one, other = two.address
    assert sorted(nodes["network"]) == [f"{one} > {other}", f"{other} > {one}"]
    (met,) = [f for f in found if f["check"] == "ranks"]
    assert met["level"] == "ok" and met["words"].startswith("2 ranks met")
    assert set(met["node"].split(", ")) == set(two.address)


def test_a_cut_link_is_blamed_on_the_rank_and_node_behind_it(
    two: Hosts, serve: Callable[..., Served], text: str
) -> None:
    flags = ("--placement-strategy", "STRICT_SPREAD", "--stall-timeout", "2")
    served = serve("--tensor-parallel-size", "2", *flags)
    assert served.text() == text
    (replica,) = served.replicas()
    ranks = {rank["node"]: rank for rank in replica["ranks"]}
    assert set(ranks) == set(two.address)
    far = ranks[next(node for node in two.address if node != replica["node"])]
    two.cut(1)
    blame = f"rank {far['rank']} (node {far['node']}, pid {far['pid']}) is silent"
    wait(lambda: any(blame in log.read_text() for log in served.log_dir.glob("replica-*.log")))
    served.process.kill()  # told to end, it would wait for a replica that finds no place
    served.process.wait()
    two.kill(1)
    two.heal(1)


def test_the_head_s_host_dies_under_streams_and_comes_back(
    two: Hosts, tmp_path: Path, text: str
) -> None:
    """The last test of this module: it takes the head away."""
    for host in (0, 1):
        two.end(host)
    shutil.rmtree(two.folder / "gcs")
    for host in (0, 1):
        two.start_ray(host)
    served = Served(two, tmp_path, "--replicas", "2", host=1)
    try:
        served.ready()

        def ready() -> list[str]:
            return sorted(row["node"] for row in served.replicas() if row["state"] == "ready")

        wait(lambda: ready() == sorted(two.address))
        streams = [Answer(served) for _ in range(8)]
        two.end(0)
        assert all(stream.text() == text for stream in streams)
        assert served.text() == text
        wait(lambda: "the head of Ray" in served.said())
        two.start_ray(0)
        wait(lambda: "the head of Ray answers again" in served.said())
        wait(lambda: len(ready()) == 2)  # on host 1 both, where host 0 comes later than Serve looks
        assert served.text() == text
        served.stop()
    finally:
        served.process.kill()
        served.process.wait()


class Answer(threading.Thread):
    """A streamed answer to PROMPT."""

    def __init__(self, served: Served) -> None:
        super().__init__(daemon=True)
        data = json.dumps(PROMPT | {"stream": True}).encode()
        asked = urllib.request.Request(
            f"{served.url}/v1/completions", data, {"Content-Type": "application/json"}
        )
        self.answer = urllib.request.urlopen(asked, timeout=120)
        self.parts: list[str] = []
        self.start()

    def run(self) -> None:
        for line in self.answer:
            if line.startswith(b"data: {"):
                self.parts.append(json.loads(line[6:])["choices"][0]["text"])

    def text(self) -> str:
        self.join(120)
        return "".join(self.parts)
