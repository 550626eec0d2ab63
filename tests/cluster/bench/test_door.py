"""`shoal bench` on the bundled model: a real server in one process, and none at all."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from shoal.cluster.client import Client, ClientError
from shoal.cluster.ports import free_port

SHOAL = [sys.executable, "-m", "shoal"]
SMALL = ["--threads", "1", "--num-gpu-blocks-override", "256", "--max-model-len", "512"]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port = free_port()
    logs = tmp_path_factory.mktemp("logs")
    command = [*SHOAL, "serve", "--local", "--port", str(port), "--log-dir", str(logs), *SMALL]
    with (logs / "output").open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_ready(url, process)
        yield url
    finally:
        process.terminate()
        process.wait(180)


def wait_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if Client(url).call("/health").get("status") == "ready":
                return
        except ClientError:
            pass
        time.sleep(0.05)
    raise AssertionError("the server did not become ready")


def bench(*args: str) -> subprocess.CompletedProcess[str]:
    command = [*SHOAL, "bench", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


def test_an_open_loop_of_shared_prefixes(url: str, tmp_path: Path) -> None:
    file, page = tmp_path / "figures.json", tmp_path / "page.html"
    done = bench(
        *("serve", "--url", url, "--json", str(file), "--report", str(page)),
        *("--dataset-name", "prefix_repetition", "--prefix-repetition-num-prefixes", "2"),
        *("--prefix-repetition-prefix-len", "128", "--prefix-repetition-suffix-len", "8"),
        *("--output-len", "6", "--num-prompts", "8", "--request-rate", "50", "--burstiness", "0.5"),
        *("--goodput", "ttft:100000", "tpot:100000"),
    )
    assert done.returncode == 0, done.stderr
    (level,) = json.loads(file.read_text())["levels"]
    assert (level["completed"], level["failed"], level["ended_early"]) == (8, 0, 0)
    assert (level["mean_prompt_tokens"], level["mean_output_tokens"]) == (136, 6)
    assert level["cached_tokens"] >= 8 * 96
    assert level["goodput_per_s"] == level["requests_per_s"]
    assert level["kv_usage"] is not None and 0 <= level["kv_usage"]["max"] <= 1
    assert "<svg" in page.read_text()


def test_chats_of_several_turns_find_their_beginnings(url: str, tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    done = bench(
        *("serve", "--url", url, "--json", str(file), "--backend", "openai-chat"),
        *("--dataset-name", "multi_turn", "--num-turns", "3", "--input-len", "20"),
        *("--output-len", "8", "--num-prompts", "4", "--num-warmups", "0"),
    )
    assert done.returncode == 0, done.stderr
    (level,) = json.loads(file.read_text())["levels"]
    assert level["completed"] > 4 and level["failed"] == 0
    assert level["cached_tokens"] > 0


def test_latency_of_a_batch(tmp_path: Path) -> None:
    file = tmp_path / "latency.json"
    shape = ["--input-len", "8", "--output-len", "4", "--batch-size", "2"]
    rounds = ["--num-iters-warmup", "1", "--num-iters", "3"]
    done = bench("latency", *shape, *rounds, "--output-json", str(file), *SMALL)
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())
    assert len(found["latencies"]) == 3
    assert min(found["latencies"]) <= found["percentiles"]["50"] <= max(found["latencies"])
    assert found["output_tokens_per_s"] == pytest.approx(8 / found["avg_latency"])
    assert "seconds a batch" in done.stdout


def test_throughput_of_chats(tmp_path: Path) -> None:
    file = tmp_path / "throughput.json"
    shape = ["--num-prompts", "5", "--num-warmups", "2", "--input-len", "12", "--output-len", "4"]
    done = bench("throughput", *shape, "--random-prefix-len", "4", "--json", str(file), *SMALL)
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())
    assert (found["prompt_tokens"], found["output_tokens"]) == (5 * 16, 5 * 4)
    assert "Throughput: " in done.stdout and "output tokens/s" in done.stdout


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("latency", "--port", "1"), "--port is the server's, and here none is started"),
        (("latency", "--dtpe", "float32"), "did you mean --dtype?"),
        (("latency", "--batch-size", "0"), "--batch-size must be at least 1"),
        (("throughput", "--dataset-name", "multi_turn"), "`shoal bench serve` measures multi_turn"),
        (("latency", "--output-json", "/nowhere/x.json"), "no folder /nowhere to write it in"),
        (("throughput", "--num-warmups", "-1"), "--num-warmups must be at least 0"),
        (("throughput", "--async-engine"), "`shoal bench serve` measures a server"),
    ],
)
def test_a_wrong_call_is_refused(args: tuple[str, ...], said: str) -> None:
    done = bench(*args)
    assert done.returncode == 2 and said in done.stderr
