"""Any number of ranks says what one says: real processes, chunks, prefix hits and preemption on."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from shoal.engine.config import from_keys
from shoal.engine.engine import AsyncEngine
from shoal.engine.request import FinishReason, Request, SamplingParams, Update, fold_seed

SHAPES: dict[str, dict[str, Any]] = {
    "tp 2": {"tensor_parallel_size": 2},
    "tp 4, overlapped": {"tensor_parallel_size": 4, "async_scheduling": True},
    "pp 2": {"pipeline_parallel_size": 2},
    "pp 3, uneven": {"pipeline_parallel_size": 3, "pipeline_layer_partition": "1,2,1"},
    "tp 2 x pp 2": {"tensor_parallel_size": 2, "pipeline_parallel_size": 2},
}

POISON = 3
"""A token that is embedded as NaN."""
FAULTS: dict[str, dict[str, Any]] = {
    "not a number": {},
    "logit_bias holds token id 500": {"logit_bias": {500: 1.0}},
    "allowed_token_ids holds token id 600": {"allowed_token_ids": [600]},
}

Found = dict[tuple[str, int], list[Update]]


def requests() -> list[Request]:
    draw = random.Random(5)
    shared = [draw.randrange(POISON + 1, 131) for _ in range(30)]

    def prompt(tail: int) -> tuple[int, ...]:
        return (*shared, *(draw.randrange(POISON + 1, 131) for _ in range(tail)))

    def params(**fields: Any) -> SamplingParams:
        return SamplingParams(bad_words_ids=[[POISON]], **fields)

    greedy = params(temperature=0, max_tokens=40, ignore_eos=True, logprobs=2)
    seeded = params(seed=11, max_tokens=30, top_p=0.9, top_k=40, ignore_eos=True)
    penalised = params(temperature=0, max_tokens=30, presence_penalty=0.7, repetition_penalty=1.2)
    scored = params(temperature=0, max_tokens=8, prompt_logprobs=1)
    family = params(n=3, seed=2, max_tokens=20, ignore_eos=True)
    kinds = [greedy, seeded, penalised, scored, family]
    return [
        Request(id=str(i), prompt=prompt(draw.randrange(0, 30)), params=kinds[i % 5])
        for i in range(10)
    ]


def texts(found: Found) -> dict[tuple[str, int], list[int]]:
    assert not any(u.error for updates in found.values() for u in updates)
    return {key: [t for u in updates for t in u.tokens] for key, updates in found.items()}


def scores(found: Found) -> list[float]:
    values: list[float] = []
    for key in sorted(found):
        for update in found[key]:
            values += [entry.logprob for entry in update.logprobs or ()]
            values += [entry.logprob for entry in update.prompt_logprobs or () if entry]
    return values


@pytest.fixture(scope="module")
def model(uneven_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uneven one, with its poison."""
    import torch
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("poisoned")
    shutil.copytree(uneven_model, folder, dirs_exist_ok=True)
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][POISON] = torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module", params=SHAPES)
def engine(
    request: pytest.FixtureRequest, ray_here: None, model: Path, engine_of: Callable[..., Any]
) -> Iterator[Any]:
    """One of several ranks."""
    made = engine_of(model, **SHAPES[request.param])
    yield made
    made.executor.close()


@pytest.fixture(scope="module")
def expected(model: Path, engine_of: Callable[..., Any]) -> Found:
    engine = engine_of(model)
    found: Found = engine.run(requests())
    assert engine.scheduler.counters.preemptions and engine.scheduler.counters.prefix_hits
    engine.executor.close()
    return found


def test_ranks_say_what_one_says(engine: Any, expected: Found) -> None:
    found = engine.run(requests())
    assert texts(found) == texts(expected)
    assert scores(found) == pytest.approx(scores(expected), rel=1e-4, abs=1e-5)
    assert engine.scheduler.counters.preemptions
    health = engine.executor.call("health")
    assert [answer["rank"] for answer in health] == list(range(len(health)))
    assert len({answer["pid"] for answer in health}) == len(health)


def test_an_engine_of_ranks_rehearses(ray_here: None, model: Path) -> None:
    """As a replica that scales does, before anybody asks it anything."""
    keys = {"model": str(model), "dtype": "float32", "threads": 1, "tensor_parallel_size": 2}
    made = AsyncEngine(from_keys(keys | {"num_gpu_blocks_override": 40}), rehearses=True)
    made.start()
    try:
        assert made.load().ticks > 0
    finally:
        made.close()


def test_one_bad_request_in_sixteen_fails_alone(engine: Any) -> None:
    def request(name: str, prompt: tuple[int, ...], seed: int, **fields: Any) -> Request:
        params = SamplingParams(seed=seed, bad_words_ids=[[POISON]], **fields)
        return Request(id=name, prompt=prompt, params=params)

    good = [request(f"good {i}", tuple(range(4, 10 + i)), i) for i in range(15)]
    alone = texts(engine.run(good))
    for reason, fields in FAULTS.items():
        prompt = (4, 5) if fields else (4, 5, POISON)
        bad = request("bad", prompt, 1, **fields)
        found = engine.run([*good[:7], bad, *good[7:]])
        end = found.pop(("bad", 0))[-1]
        assert end.finish is FinishReason.ERROR and reason in (end.error or "")
        assert texts(found) == alone
    assert texts(engine.run(good)) == alone  # in blocks that may hold NaN now


def test_numbers_of_any_size_cross(engine: Any) -> None:
    huge: Any = 10**30
    fields = {"seed": huge, "top_k": huge, "max_tokens": huge, "logprobs": huge}
    params = SamplingParams(n=2, bad_words_ids=[[POISON]], **fields)
    request = Request(id="huge", prompt=tuple(range(4, 100)), params=params)
    folded = replace(params, seed=fold_seed(huge), top_k=131, max_tokens=None, logprobs=131)
    assert texts(engine.run([request])) == texts(engine.run([replace(request, params=folded)]))


@pytest.fixture(scope="module")
def other_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Weights that lie input by output, under a tied head; heads that are told apart by alibi."""
    import torch
    from transformers import FalconConfig, FalconForCausalLM, GPT2Config, GPT2LMHeadModel

    sizes: dict[str, Any] = {
        "vocab_size": 131,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "initializer_range": 0.15,
        "eos_token_id": 2,
    }
    alibi: dict[str, Any] = {"alibi": True, "multi_query": False, "parallel_attn": False}
    folders = {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name, model in (
            ("gpt2", GPT2LMHeadModel(GPT2Config(**sizes))),
            ("falcon", FalconForCausalLM(FalconConfig(**sizes, **alibi, bias=True))),
        ):
            folders[name] = tmp_path_factory.mktemp(name)
            model.to(torch.float32).save_pretrained(folders[name])
    return folders


@pytest.mark.parametrize(("name", "shape"), [("gpt2", "pp 2"), ("falcon", "tp 2")])
def test_so_do_ranks_of_other_families(
    name: str,
    shape: str,
    ray_here: None,
    other_models: dict[str, Path],
    engine_of: Callable[..., Any],
) -> None:
    said = []
    for keys in ({}, SHAPES[shape]):
        engine = engine_of(other_models[name], **keys)
        try:
            said.append(engine.run(requests()))
        finally:
            engine.executor.close()
    alone, together = said
    assert texts(together) == texts(alone)
    assert scores(together) == pytest.approx(scores(alone), rel=1e-4, abs=1e-5)
