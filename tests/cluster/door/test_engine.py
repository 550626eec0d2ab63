"""The door before a real engine: a small random model, its tokens, its aborts, its full queue."""

import asyncio
import json
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2 as httpx
import openai
import pytest
from shoal.cluster.card import model_card
from shoal.cluster.link import LinkLost
from shoal.cluster.local import LocalRouter, MemoryLink
from shoal.cluster.settings import serve_config
from shoal.engine.engine import AsyncEngine
from shoal.engine.errors import EngineLost
from shoal.engine.request import Request, SamplingParams


def until(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"temperature": 0},
        {"n": 3},
        {"prompt": ["a", "the lazy dog"], "n": 2, "logprobs": 2},
        {"echo": True, "logprobs": 1},
        {"extra_body": {"ignore_eos": True, "min_tokens": 4}},
    ],
)
def test_the_stream_is_the_plain_answer(served, fields):
    plain = served.complete(**fields)
    options = {"include_usage": True}
    chunks = list(served.complete(**fields, stream=True, stream_options=options))
    assert [choice.index for choice in plain.choices] == list(range(len(plain.choices)))
    for choice in plain.choices:
        mine = [c.choices[0] for c in chunks[:-1] if c.choices[0].index == choice.index]
        assert "".join(piece.text for piece in mine) == choice.text
        assert mine[-1].finish_reason == choice.finish_reason
    usage, expected = chunks[-1].usage, plain.usage
    assert usage.completion_tokens == expected.completion_tokens
    assert usage.prompt_tokens == expected.prompt_tokens


def test_a_seed_decides_the_text_whatever_the_company(served):
    alone = served.complete(seed=11).choices[0].text
    with ThreadPoolExecutor(16) as pool:
        texts = list(pool.map(lambda seed: served.complete(seed=seed).choices[0].text, range(16)))
    assert texts[11] == alone
    assert len(set(texts)) > 8


def test_echo_scores_what_was_generated_as_it_was_generated(served):
    fields = {"logprobs": 1, "temperature": 0, "extra_body": {"return_token_ids": True}}
    made = served.complete(**fields).choices[0]
    whole = [*made.prompt_token_ids, *made.token_ids]
    scored = served.complete(prompt=whole, echo=True, max_tokens=1, logprobs=1, temperature=0)
    values = scored.choices[0].logprobs.token_logprobs
    assert len(values) == len(whole) + 1
    assert values[len(made.prompt_token_ids) : -1] == pytest.approx(
        made.logprobs.token_logprobs, abs=1e-4
    )
    tops = scored.choices[0].logprobs.top_logprobs[len(made.prompt_token_ids) : -1]
    assert all(value == max(top.values()) for value, top in zip(values[-25:-1], tops, strict=True))


def test_a_stop_string_from_the_middle_of_the_text(served):
    text = served.complete(temperature=0).choices[0].text
    stop = text[7:10]
    answer = served.complete(temperature=0, stop=stop)
    assert answer.choices[0].text == text[: text.index(stop)]
    assert answer.choices[0].stop_reason == stop
    until(served.idle)


def test_the_prefix_cache_shows_in_the_usage(served):
    prompt = "the quick brown fox jumps over the lazy dog and says hello to the world again " * 8
    first = served.complete(prompt=prompt, max_tokens=1)
    again = served.complete(prompt=prompt, max_tokens=1)
    assert first.usage.prompt_tokens_details.cached_tokens == 0
    assert again.usage.prompt_tokens_details.cached_tokens > 0
    salted = served.complete(prompt=prompt, max_tokens=1, extra_body={"cache_salt": "x"})
    assert salted.usage.prompt_tokens_details.cached_tokens == 0


def test_a_client_that_goes_away_frees_its_sequences(served, monkeypatch):
    """Within a step of the gateway's word, which the engine is made to wait for in its third."""
    engine, gone, steps = served.engine, threading.Event(), []
    step, abort = engine._loop.step, engine.abort

    def held():
        steps.append(1)
        if len(steps) > 2:
            assert gone.wait(60)
        return step()

    def told(*request):
        abort(*request)
        gone.set()

    monkeypatch.setattr(engine._loop, "step", held)
    monkeypatch.setattr(engine, "abort", told)
    before = engine.load().counters["generation_tokens"]
    stream = served.complete(n=8, max_tokens=240, stream=True, extra_body={"ignore_eos": True})
    next(iter(stream))
    stream.close()
    until(served.idle)
    assert engine.load().counters["generation_tokens"] - before <= 8 * 3


def test_a_full_queue_answers_429(served):
    bodies = {"prompt": "a", "n": 48, "max_tokens": 200, "ignore_eos": True, "stream": True}
    statuses = []

    def ask():
        answer = httpx.post(f"{served.url}/v1/completions", json=bodies, timeout=120)
        statuses.append((answer.status_code, answer.headers.get("retry-after")))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {status for status, _ in statuses} == {200, 429}
    assert all(retry is not None for status, retry in statuses if status == 429)
    until(served.idle)


def test_many_clients_at_once(served):
    def ask(i):
        for _ in range(20):
            try:
                chunks = list(served.complete(prompt=f"number {i}", max_tokens=16, stream=True))
                return chunks[-1].choices[0].finish_reason
            except openai.RateLimitError:
                time.sleep(0.05)
        return None

    with ThreadPoolExecutor(40) as pool:
        reasons = list(pool.map(ask, range(40)))
    assert set(reasons) <= {"stop", "length"}
    until(served.idle)


def test_an_engine_that_is_gone_is_down(served, model_folder):
    config = serve_config({"model": model_folder, "num_gpu_blocks_override": 64}, environ={})
    (model,) = config.models
    engine = AsyncEngine(model.engine)
    capacity = engine.start()
    heard = []

    async def run():
        router = LocalRouter(config.models)
        link = MemoryLink(0, engine, model_card(model, capacity))
        router.add(link)
        assert router.status() == "ready"
        params = SamplingParams(max_tokens=200, ignore_eos=True, seed=1)
        link.submit(Request(id="a", prompt=(5, 6), params=params), heard.append)
        await asyncio.to_thread(engine.close)
        await asyncio.sleep(0)
        assert router.status() == "down"
        link.submit(Request(id="b", prompt=(5, 6), params=params), heard.append)
        with pytest.raises(EngineLost):
            router.choose(model_folder, Request(id="c", prompt=(5,)))
        await asyncio.sleep(0)

    asyncio.run(run())
    assert [type(word) for word in heard[-2:]] == [LinkLost, EngineLost]


@pytest.mark.parametrize(("setting", "greedy"), [("auto", True), ("shoal", False)])
def test_whose_defaults_a_request_gets(serve_model, model_folder, tmp_path, setting, greedy):
    """Those of generation_config.json, unless it is `vllm` or `shoal`."""
    model = tmp_path / "model"
    shutil.copytree(model_folder, model)
    defaults = {"max_new_tokens": 3, "temperature": 0.0}
    (model / "generation_config.json").write_text(json.dumps(defaults))
    body = {"messages": [{"role": "user", "content": "a"}], "ignore_eos": True}
    with serve_model(model=str(model), generation_config=setting) as served:
        address = f"{served.url}/v1/chat/completions"
        answers = [httpx.post(address, json=body, timeout=60).json() for _ in range(2)]
    lengths = [answer["usage"]["completion_tokens"] for answer in answers]
    assert (lengths == [3, 3]) is greedy, "else all that fits"
    texts = {answer["choices"][0]["message"]["content"] for answer in answers}
    assert (len(texts) == 1) is greedy
