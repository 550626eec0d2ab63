"""Two models behind two gateways on Ray: each with replicas, health and figures of its own, and
its own to lose to a request that kills engines; the engines are scripted."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import openai
import pytest
from scripted import POISON
from served import Served, descendants, gone, no_controller, open_files, title, wait
from streams import metric

COMPANY = 900
MODELS = [
    {"served_model_name": "a", "replicas": 2, "max_model_len": 1024},
    {"served_model_name": ["b", "other/b"], "max_model_len": 1024},
]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Served]:
    models = [{"model": str(tiny_model), **model} for model in MODELS]
    folder = tmp_path_factory.mktemp("fleet")
    served = Served(folder, models=json.dumps(models), gateways=2, door="real")
    try:
        yield served.wait_ready()
    finally:
        served.clean()


def client(port: int, **settings: Any) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"http://127.0.0.1:{port}/v1", api_key="k", max_retries=0, **settings
    )


def count(port: int, model: str, n: int = 40) -> str:
    answer = client(port).completions.create(model=model, prompt="x", max_tokens=n)
    assert answer.model == model.removeprefix("other/")
    return answer.choices[0].text


def pids(served: Served, deployment: str) -> list[int]:
    found = descendants(served.process.pid)
    return sorted(p for p in found if f"Replica:shoal:{deployment}" in title(p))


def doors(served: Served) -> dict[int, int]:
    """Each gateway's private port, by its process."""
    listening = {}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A":
            listening[f"socket:[{fields[9]}]"] = int(fields[1].rpartition(":")[2], 16)
    found = {}
    for pid in pids(served, "Gateway"):
        for port in {listening[link] for link in open_files(pid) if link in listening}:
            if port != served.port and answers(port):
                found[pid] = port
    return found


def answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/version", timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


def both_doors(served: Served) -> dict[int, int]:
    wait(lambda: len(doors(served)) == 2)
    return doors(served)


def health(served: Served) -> dict[str, Any]:
    return httpx.get(f"http://127.0.0.1:{served.port}/health", timeout=60).json()


def wait_healthy(served: Served) -> None:
    wait(lambda: all(health(served)["status"] == "ready" for _ in range(8)))


def figures(port: int) -> dict[str, float]:
    """What a gateway tells but for HTTP, which asking for it changes."""
    text = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=60).text
    lines = (line for line in text.splitlines() if line[:1] != "#" and "_http_" not in line)
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def ended(port: int, model: str) -> float:
    """How many requests of a model have been answered, as a gateway tells it."""
    pattern = rf'shoal_request_success_total{{.*finished_reason="length",model_name="{model}"}}'
    return sum(value for name, value in figures(port).items() if re.fullmatch(pattern, name))


def test_a_request_names_its_model(fleet: Served) -> None:
    listed = [model.id for model in client(fleet.port).models.list().data]
    assert listed == ["a", "b", "other/b"]
    assert count(fleet.port, "a") == count(fleet.port, "b") == count(fleet.port, "other/b")
    with pytest.raises(openai.NotFoundError, match="Models served here: `a`, `b`, `other/b`"):
        count(fleet.port, "c")
    body = {"prompt": "x", "max_tokens": 1}
    answer = httpx.post(f"http://127.0.0.1:{fleet.port}/v1/completions", json=body)
    assert answer.status_code == 400
    assert (
        "several models are served here: `a`, `b`, `other/b`" in answer.json()["error"]["message"]
    )


def test_the_banner_shows_each_model(fleet: Served) -> None:
    said = fleet.said()
    assert "a (up to 200,000 tokens), 2 replicas" in said
    assert "b, other/b (up to 200,000 tokens)" in said
    assert "load the models" in said and said.count("Started in") == 2


def test_every_model_is_a_deployment_of_its_own(fleet: Served) -> None:
    assert (len(pids(fleet, "a")), len(pids(fleet, "b")), len(pids(fleet, "Gateway"))) == (2, 1, 2)


def test_every_process_has_a_log_of_its_own(fleet: Served) -> None:
    logs = {path.stem for path in fleet.log_dir.glob("*.log")}
    assert logs == {"serve", "gateway-0", "gateway-1", "replica-a-0", "replica-a-1", "replica-b-0"}


def test_the_death_of_one_model_leaves_the_other_alone(fleet: Served) -> None:
    wait_healthy(fleet)
    pieces: list[str] = []
    begun = threading.Event()

    def read() -> None:
        options = {"model": "a", "prompt": "x", "max_tokens": 400, "stream": True}
        for chunk in client(fleet.port, timeout=60).completions.create(**options):
            pieces.append(chunk.choices[0].text)
            begun.set()

    reader = threading.Thread(target=read)
    reader.start()
    assert begun.wait(60)
    (victim,) = pids(fleet, "b")
    with no_controller(fleet.process.pid):
        os.kill(victim, signal.SIGKILL)
        wait(lambda: health(fleet)["models"] == {"a": "ready", "b": "down"})
        assert health(fleet)["status"] == "degraded"
        with pytest.raises(openai.InternalServerError) as caught:
            count(fleet.port, "b")
        assert caught.value.status_code == 503
        assert count(fleet.port, "a")
    reader.join(60)
    assert "".join(pieces) == count(fleet.port, "a", 400)
    wait_healthy(fleet)
    assert count(fleet.port, "b") and pids(fleet, "b") != [victim]


def test_whichever_gateway_is_asked_tells_the_same(fleet: Served) -> None:
    wait_healthy(fleet)
    (first, second) = both_doors(fleet).values()
    before = {model: ended(first, model) for model in "ab"}
    for port, model, times in ((first, "a", 3), (second, "a", 2), (second, "b", 4)):
        for _ in range(times):
            count(port, model)
    for port in (first, second):
        assert ended(port, "a") - before["a"] == 5
        assert ended(port, "b") - before["b"] == 4
    wait(lambda: figures(first) == figures(second))  # but for loads, which come with their messages
    engines = {name for name in figures(first) if name.startswith("shoal_num_requests_running")}
    of = 'shoal_num_requests_running{{engine="{}",model_name="{}"}}'
    assert engines == {of.format(0, "a"), of.format(1, "a"), of.format(0, "b")}


def test_no_sum_goes_back_when_a_gateway_dies(fleet: Served) -> None:
    wait_healthy(fleet)
    there = both_doors(fleet)
    (victim, its_port), (_, other) = there.items()
    count(its_port, "a")
    total = ended(other, "a")
    os.kill(victim, signal.SIGKILL)
    assert ended(other, "a") == total
    wait(lambda: set(doors(fleet)) - set(there) and len(doors(fleet)) == 2)
    (new,) = (port for pid, port in doors(fleet).items() if pid not in there)
    assert ended(new, "a") == total
    count(new, "a")
    assert ended(other, "a") == ended(new, "a") == total + 1


def test_no_sum_goes_back_when_a_replica_dies(fleet: Served) -> None:
    wait_healthy(fleet)
    (port, other) = both_doors(fleet).values()
    before = figures(port)
    os.kill(pids(fleet, "a")[0], signal.SIGKILL)
    wait(lambda: health(fleet)["models"]["a"] == "degraded")
    wait_healthy(fleet)
    for gateway in (port, other):
        after = figures(gateway)
        counts = [name for name in before if re.search("_(total|bucket|count|sum){", name)]
        assert [name for name in counts if after.get(name, 0) < before[name]] == []


class Asked(threading.Thread):
    """A completion of so many tokens."""

    def __init__(self, port: int, max_tokens: int) -> None:
        super().__init__(daemon=True)
        self.url = f"http://127.0.0.1:{port}/v1/completions"
        self.body = {"model": "a", "prompt": "a", "max_tokens": max_tokens}
        self.start()

    def run(self) -> None:
        self.answer = httpx.post(self.url, json=self.body, timeout=240)

    def told(self) -> httpx.Response:
        self.join(240)
        return self.answer


def test_a_request_that_kills_engines_is_found_out_and_its_company_is_whole(fleet: Served) -> None:
    wait_healthy(fleet)
    port, _ = both_doors(fleet).values()
    url = f"http://127.0.0.1:{port}"
    (unharmed,) = pids(fleet, "b")
    lost, moved = metric(url, "failovers_total"), metric(url, "streams_moved_total")
    company = [Asked(port, COMPANY) for _ in range(6)]
    wait(lambda: metric(url, "num_requests_running") == 6)
    poison = Asked(port, POISON)
    refused: dict[str, Any] = poison.told().json()["error"]
    assert poison.told().status_code == 500 and refused["code"] == "request_kills_engine"
    assert "3 engines died or got stuck" in refused["message"]
    answers = [asked.told().json() for asked in company]
    assert [answer["usage"]["completion_tokens"] for answer in answers] == [COMPANY] * 6
    assert len({answer["choices"][0]["text"] for answer in answers}) == 1
    assert metric(url, "failovers_total") - lost == 3
    assert metric(url, "streams_moved_total") - moved >= 3
    assert pids(fleet, "b") == [unharmed]


def test_gateways_are_told_figures_by_those_alone_that_hold_the_secret(fleet: Served) -> None:
    for port in both_doors(fleet).values():
        url = f"http://127.0.0.1:{port}/-/figures"
        assert httpx.get(url).status_code == 403
        headers = {"x-nonce": "n", "x-proof": "0" * 64}
        assert httpx.get(url, headers=headers).status_code == 403
    assert httpx.get(f"http://127.0.0.1:{fleet.port}/-/figures").status_code == 404


def test_ctrl_c_lets_the_streams_of_both_models_end(fleet: Served) -> None:
    """The last test of this module: it ends the server."""
    wait_healthy(fleet)
    texts: dict[str, str] = {}
    begun = threading.Semaphore(0)

    def read(model: str) -> None:
        options = {"model": model, "prompt": "x", "max_tokens": 300, "stream": True}
        for chunk in client(fleet.port, timeout=60).completions.create(**options):
            if model not in texts:
                begun.release()
            texts[model] = texts.get(model, "") + chunk.choices[0].text

    readers = [threading.Thread(target=read, args=(model,)) for model in "ab"]
    for reader in readers:
        reader.start()
    assert all(begun.acquire(timeout=60) for _ in readers)
    fleet.pids = descendants(fleet.process.pid)
    fleet.signal_group(signal.SIGINT)
    for reader in readers:
        reader.join(60)
    assert texts["a"] == texts["b"]
    assert fleet.process.wait(180) == 0, fleet.said()
    wait(lambda: gone(fleet.pids))
