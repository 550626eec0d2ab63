"""Two real engines behind one door: where turns of a conversation go, and what is told of it."""

import asyncio
from dataclasses import replace

import httpx2 as httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from shoal.cluster.card import model_card
from shoal.cluster.gateway import build_gateway
from shoal.cluster.local import LocalRouter, MemoryLink
from shoal.cluster.settings import serve_config
from shoal.engine.engine import AsyncEngine

NAMES = {"model": "m", "max_tokens": 1, "temperature": 0}


class Fleet:
    def __init__(self, url, engines, router):
        self.url, self.engines, self.router = url, engines, router

    def ask(self, prompt, headers=None, **fields):
        """The index of the engine that computed it."""
        before = [engine.load().counters["prefix_queries"] for engine in self.engines]
        answer = httpx.post(
            f"{self.url}/v1/completions",
            json={**NAMES, "prompt": prompt, **fields},
            headers=headers,
            timeout=60,
        )
        assert answer.status_code == 200, answer.text
        after = [engine.load().counters["prefix_queries"] for engine in self.engines]
        (index,) = [i for i in range(2) if after[i] > before[i]]
        return index

    def figures(self):
        families = text_string_to_metric_families(httpx.get(f"{self.url}/metrics").text)
        found = {}
        for family in families:
            for sample in family.samples:
                found[sample.name] = found.get(sample.name, 0) + sample.value
        return found


@pytest.fixture(scope="module")
def fleet(model_folder, serve_app):
    settings = {
        "model": model_folder,
        "served_model_name": ("m",),
        "replicas": 2,
        "local": True,
        "max_waiting": 2,
        "max_num_seqs": 2,
        "dtype": "float32",
        "threads": 1,
        "num_gpu_blocks_override": 256,
        "block_size": 16,
    }
    config = serve_config(settings, environ={})
    (model,) = config.models
    engines = [AsyncEngine(model.engine) for _ in range(2)]
    router = LocalRouter(config.models)
    with serve_app(build_gateway(config, router)) as (port, loop):
        capacities = [engine.start() for engine in engines]

        async def open_():
            for index, engine in enumerate(engines):
                router.add(MemoryLink(index, engine, model_card(model, capacities[index])))

        asyncio.run_coroutine_threadsafe(open_(), loop).result(60)
        yield Fleet(f"http://127.0.0.1:{port}", engines, router)
    for engine in engines:
        engine.close()


def test_a_second_turn_goes_to_where_the_first_was(fleet):
    for number in range(4):
        prompt = [2 + (7 * i + number) % 390 for i in range(200)]
        first = fleet.ask(prompt)
        before = fleet.figures()
        other = fleet.ask([2 + (11 * i + number) % 390 for i in range(150)])
        assert other in (0, 1)
        assert {fleet.ask([*prompt, 5, 6, number]) for number in range(3)} == {first}
        after = fleet.figures()
        predicted = "shoal_prompt_tokens_cached_predicted_total"
        found = "shoal_prompt_tokens_cached_total"
        assert after[predicted] - before[predicted] == 3 * 128
        assert after[found] - before[found] >= 3 * 192


def test_a_session_stays_at_one_engine(fleet):
    seen = set()
    for number in range(8):
        name = f"session-{number}"
        turns = {
            fleet.ask([2 + number, 3], session_id=name),
            fleet.ask([2 + number, 4], headers={"X-Session-Id": name}),
            fleet.ask([2 + number, 5], headers={"X-Session-Id": name}),
        }
        assert len(turns) == 1
        seen |= turns
    assert seen == {0, 1}


def test_a_session_of_a_novel_is_refused(fleet):
    body = {**NAMES, "prompt": [2], "session_id": "x" * 257}
    answer = httpx.post(f"{fleet.url}/v1/completions", json=body)
    assert answer.status_code == 400 and "session_id" in answer.text


def test_what_no_queue_can_hold_is_refused_before_it_is_sent(fleet, monkeypatch):
    sent = []
    for engine in fleet.engines:
        load = replace(engine.load(), room=0)
        monkeypatch.setattr(engine, "load", lambda load=load: load)
        monkeypatch.setattr(engine, "submit", lambda *_: sent.append(1))
    for path, asked in (
        ("completions", {"prompt": "a"}),
        ("chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
    ):
        answer = httpx.post(f"{fleet.url}/v1/{path}", json={**NAMES, **asked})
        assert answer.status_code == 429 and answer.headers["retry-after"] == "1"
        assert answer.json()["error"]["code"] == "rate_limit_exceeded"
    assert not sent
    monkeypatch.undo()
    fleet.ask([2, 3])
