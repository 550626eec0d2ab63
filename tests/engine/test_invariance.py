"""Text does not depend on company, chunk size, prefix hits, preemption, depth, or an earlier life.

Real engines over random models in float32, where equal up to rounding means equal ids.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from shoal.engine.config import from_keys
from shoal.engine.core.scheduler import Scheduler
from shoal.engine.local import LocalExecutor
from shoal.engine.loop import Loop
from shoal.engine.request import FinishReason, Request, SamplingParams
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    Gemma2Config,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
)

PLAIN: dict[str, Any] = {
    "threads": 1,
    "max_num_seqs": 16,
    "max_num_batched_tokens": 512,
    "block_size": 16,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "company": {},
    "chunks of 16": {"max_num_batched_tokens": 16},
    "no prefix cache": {"enable_prefix_caching": False},
    "overlapped": {"async_scheduling": True},
    "small blocks": {"block_size": 4},
    "preempted": {"block_size": 4, "num_gpu_blocks_override": 36, "max_model_len": 128},
    "overlapped, preempted, chunked": {
        "block_size": 4,
        "num_gpu_blocks_override": 36,
        "max_model_len": 128,
        "max_num_batched_tokens": 24,
        "async_scheduling": True,
    },
}

FOREIGN = "Gemma2 in transformers' code"

Texts = dict[tuple[str, int], list[int]]


class Engine:
    """A loop over a real executor, driven step by step."""

    def __init__(self, model: Path, **keys: Any) -> None:
        config = from_keys({"model": str(model), "dtype": "float32", **PLAIN, **keys})
        self.executor = LocalExecutor(config)
        capacity = self.executor.start(config)
        self.scheduler = Scheduler(
            config, capacity, depth=self.executor.depth, resident=self.executor.resident
        )
        self.loop = Loop(self.scheduler, self.executor)

    def run(self, requests: list[Request]) -> Texts:
        texts: Texts = {}
        for request in requests:
            self.loop.add(request)
        while self.loop.unfinished:
            for update in self.loop.step():
                assert update.finish is not FinishReason.ERROR, update.error
                texts.setdefault((update.id, update.sibling), []).extend(update.tokens)
        self.scheduler.verify()
        return texts

    def alone(self, requests: list[Request]) -> Texts:
        texts: Texts = {}
        for request in requests:
            texts |= self.run([request])
        return texts


SIZES: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}


def windows() -> PreTrainedConfig:
    """A Qwen2 whose upper half sees 24 tokens back: two cache groups."""
    return Qwen2Config(
        **SIZES,
        intermediate_size=96,
        num_key_value_heads=2,
        use_sliding_window=True,
        sliding_window=24,
        max_window_layers=2,
    )


def window_alone() -> PreTrainedConfig:
    """A Mistral, all of whose layers see 24 tokens back."""
    return MistralConfig(**SIZES, intermediate_size=96, num_key_value_heads=2, sliding_window=24)


def alibi() -> PreTrainedConfig:
    """A Falcon whose heads fade their keys."""
    return FalconConfig(**SIZES, alibi=True, multi_query=False, parallel_attn=False)


def foreign() -> PreTrainedConfig:
    """A Gemma2, which runs in transformers' code: one layer sees 24 tokens back."""
    return Gemma2Config(
        **{**SIZES, "num_hidden_layers": 2},
        intermediate_size=96,
        num_key_value_heads=2,
        head_dim=16,
        sliding_window=24,
        initializer_range=0.2,
    )


MADE: dict[str, Callable[[], PreTrainedConfig]] = {
    "Qwen2 with windows": windows,
    "Mistral": window_alone,
    "Falcon with alibi": alibi,
    FOREIGN: foreign,
}


@pytest.fixture(scope="module", params=["Qwen3", "bundled", *MADE])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "bundled":
        folder: Path = request.getfixturevalue("tiny_model")
        return folder
    if request.param == "Qwen3":
        make: Callable[[str], Path] = request.getfixturevalue("random_model")
        return make("Qwen3ForCausalLM")
    folder = tmp_path_factory.mktemp("made")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        config = MADE[request.param]()
        AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def requests() -> list[Request]:
    """Greedy, seeded and penalised requests, with beginnings in common and siblings."""
    rng = random.Random(7)
    shared = [rng.randrange(3, 90) for _ in range(40)]
    made = []
    for number in range(8):
        ids = shared[: rng.choice((0, 17, 40))] + [rng.randrange(3, 90) for _ in range(1 + number)]
        params = SamplingParams(
            n=3 if number == 5 else 1,
            temperature=rng.choice((0.0, 0.8)),
            top_p=0.95,
            seed=number,
            presence_penalty=0.5 * (number % 2),
            repetition_penalty=1.1 if number % 3 == 0 else 1.0,
            max_tokens=14 + 2 * number,
            ignore_eos=True,
        )
        made.append(Request(id=str(number), prompt=tuple(ids), params=params))
    return made


@pytest.fixture(scope="module")
def undisturbed(model: Path, requests: list[Request]) -> Iterator[Texts]:
    """What each request says with the engine to itself and nothing cached."""
    engine = Engine(model, enable_prefix_caching=False)
    yield engine.alone(requests)
    engine.executor.close()


@pytest.mark.parametrize("variant", VARIANTS)
def test_text_does_not_change(
    model: Path, requests: list[Request], undisturbed: Texts, variant: str
) -> None:
    engine = Engine(model, **VARIANTS[variant])
    assert engine.run(requests) == undisturbed
    assert engine.run(requests) == undisturbed, "with the prefix cache warm"
    if "preempted" in variant:
        assert engine.scheduler.counters.preemptions, "nothing was preempted"
    engine.executor.close()


def test_a_resumed_request_goes_on_exactly(
    model: Path, requests: list[Request], undisturbed: Texts
) -> None:
    """From any cut, in company: seeds, penalties and lengths carry over."""
    engine = Engine(model)
    resumed = []
    for request in requests:
        for sibling in range(request.params.n):
            whole = undisturbed[request.id, sibling]
            cut = 1 + (7 * int(request.id) + sibling) % (len(whole) - 1)
            resumed.append((request, sibling, whole, cut))
    texts = engine.run(
        [
            Request(
                id=f"{request.id}.{sibling}",
                prompt=request.prompt,
                params=_single(request.params),
                emitted=tuple(whole[:cut]),
                sibling=sibling,
            )
            for request, sibling, whole, cut in resumed
        ]
    )
    for request, sibling, whole, cut in resumed:
        assert texts[f"{request.id}.{sibling}", sibling] == whole[cut:]
    engine.executor.close()


def _single(params: SamplingParams) -> SamplingParams:
    return replace(params, n=1)
