"""One application on several hosts: ranks across them, lost links, drained nodes, other versions."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from hosts import Hosts, hosts, wait

pytestmark = pytest.mark.netns

TINY = Path(__file__).resolve().parents[3] / "configs" / "tiny"
PROMPT = {"model": "tiny", "prompt": "Once upon a time", "max_tokens": 40, "temperature": 0}


@pytest.fixture(scope="module")
def two() -> Iterator[Hosts]:
    with hosts(2) as made:
        yield made


class Served:
    """`shoal serve` on host 0."""

    def __init__(self, made: Hosts, folder: Path, *flags: str, port: int = 8000) -> None:
        self.url = f"http://{made.address[0]}:{port}"
        self.log_dir = folder / "logs"
        self.output = folder / "output"
        line = [
            *(sys.executable, "-m", "shoal", "serve", str(TINY), "--served-model-name", "tiny"),
            *("--ray-address", made.ray_address, "--host", made.address[0], "--port", str(port)),
            *("--max-model-len", "256", "--num-gpu-blocks-override", "64", "--threads", "1"),
            *("--dtype", "float32", "--log-dir", str(self.log_dir), *flags),
        ]
        with self.output.open("w") as output:
            self.process = made.start(0, line, stdout=output, stderr=subprocess.STDOUT)

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
            assert self.process.wait(60) == 0, self.said()
        finally:
            self.process.kill()


def test_ranks_on_two_hosts_give_one_host_s_text(two: Hosts, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    one = Served(two, tmp_path / "one").ready()
    text = one.text()
    one.stop()
    for flag in ("--tensor-parallel-size", "--pipeline-parallel-size"):
        folder = tmp_path / flag
        folder.mkdir()
        bundles = () if "pipeline" in flag else ("--placement-strategy", "SPREAD")
        served = Served(two, folder, flag, "2", *(bundles or ("--placement-strategy",)[:0])).ready()
        assert served.text() == text
        served.stop()
