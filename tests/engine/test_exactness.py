"""Text and log probabilities are the same bits whatever company a request keeps.

Not up to rounding: in bfloat16 too, where a difference in the last bit soon changes a word. The
bundled model says 34 texts of about a hundred tokens in every variant, random models short ones.
Two of the prompts are long, so that attention goes over several tiles of keys.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from shoal.engine.config import from_keys
from shoal.engine.core.roster import Counters
from shoal.engine.core.scheduler import Scheduler
from shoal.engine.local import LocalExecutor
from shoal.engine.loop import Loop
from shoal.engine.request import FinishReason, Request, SamplingParams
from shoal.kernels.cpu.backend import native_pages
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

SIZES: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 2048,
}
GROUPED: dict[str, Any] = {**SIZES, "intermediate_size": 96, "num_key_value_heads": 2}
MODELS = {
    "llama": LlamaConfig(**GROUPED),
    "qwen2": Qwen2Config(**GROUPED),
    "qwen3": Qwen3Config(**GROUPED, head_dim=32, tie_word_embeddings=True),
    "mistral": MistralConfig(**GROUPED, sliding_window=40),
    "gpt2": GPT2Config(**SIZES),
    "falcon-alibi": FalconConfig(**SIZES, alibi=True, multi_query=False, parallel_attn=False),
    "falcon": FalconConfig(**SIZES),
    "llama-head-40": LlamaConfig(**GROUPED, head_dim=40),
}


class Variant(NamedTuple):
    """Another way to compute, and whether an engine's counters say that it came to that."""

    keys: dict[str, Any]
    happened: Callable[[Counters], object]


def steps_of(counters: Counters, least: int, most: float) -> int:
    """How many steps computed as many tokens; bounds as in `STEP_TOKENS`."""
    return sum(n for bound, n in counters.step_tokens.items() if least <= (bound or 1e9) <= most)


UNCACHED: dict[str, Any] = {"enable_prefix_caching": False}
VARIANTS = {
    "in a batch of 32, chunked at 512": Variant(
        UNCACHED, lambda c: steps_of(c, 32, 32) and steps_of(c, 512, 512)
    ),
    "chunked at 16": Variant(
        {"max_num_batched_tokens": 16, "max_num_seqs": 16},
        lambda c: steps_of(c, 16, 16) and not steps_of(c, 32, 1e9),
    ),
    "with prefixes cached": Variant({}, lambda c: c.prefix_hits),
    "preempted": Variant(
        {"num_gpu_blocks_override": 80, "max_model_len": 1248}, lambda c: c.preemptions
    ),
    "on two threads, overlapped": Variant(
        {"threads": 2, "async_scheduling": True}, lambda c: c.steps
    ),
    "at the usual budget, of which prompts have a part": Variant(
        {"max_num_batched_tokens": None, "block_size": None, **UNCACHED},
        lambda c: steps_of(c, 128, 512),
    ),
}

LONG = (762, 1100)
"""Prompts of several tiles of keys, which are of 256; the first one's text begins another. Threads
share a text of several tiles where it has little company."""

SHORT = 12

Said = dict[str, list[tuple[int, object]]]


class Engine:
    """A loop over a real executor, driven step by step."""

    def __init__(self, model: Path, **keys: Any) -> None:
        plain = {"threads": 1, "max_num_seqs": 32, "max_num_batched_tokens": 512, "block_size": 16}
        config = from_keys({"model": str(model), **plain, **keys})
        self.executor = LocalExecutor(config)
        self.capacity = self.executor.start(config)
        self.scheduler = Scheduler(
            config, self.capacity, depth=self.executor.depth, resident=self.executor.resident
        )
        self.loop = Loop(self.scheduler, self.executor)

    def run(self, requests: list[Request]) -> Said:
        said: Said = {request.id: [] for request in requests}
        for request in requests:
            self.loop.add(request)
        while self.loop.unfinished:
            for update in self.loop.step():
                assert update.finish is not FinishReason.ERROR, update.error
                assert update.logprobs is not None
                said[update.id] += zip(update.tokens, update.logprobs, strict=True)
        return said


def requests(num_tokens: int) -> list[Request]:
    """32 short ones, a quarter of them with a beginning in common, then those of `LONG` prompts,
    which outlast them; some greedy, some drawn; their texts of `num_tokens` and up to 4 more.
    """
    rng = random.Random(11)
    shared, beginning = ([rng.randrange(3, 120) for _ in range(n)] for n in (70, 600))
    prompts = []
    for number in range(32):
        own = [rng.randrange(3, 120) for _ in range(1 + 3 * number)]
        prompts.append(shared[: 70 * (number % 4 == 0)] + own)
    for length in LONG:
        own = [rng.randrange(3, 120) for _ in range(length - len(beginning))]
        prompts.append(beginning + own)
    made = []
    for number, prompt in enumerate(prompts):
        params = SamplingParams(
            temperature=0.9 * (number % 2),
            seed=number,
            logprobs=1,
            max_tokens=num_tokens + number % 5,
            ignore_eos=True,
        )
        made.append(Request(id=str(number), prompt=tuple(prompt), params=params))
    return made


@pytest.fixture(scope="module", params=[*MODELS, "bundled"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "bundled":
        tiny: Path = request.getfixturevalue("tiny_model")
        return tiny
    folder = tmp_path_factory.mktemp("exact")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        made = AutoModelForCausalLM.from_config(MODELS[request.param], dtype=torch.float32)
        with torch.no_grad():
            for name, weight in made.named_parameters():
                if weight.dim() > 1:
                    weight.normal_(0, 0.15)
                elif name.endswith("bias"):
                    weight.normal_(0, 0.1)
        made.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_company_changes_no_bit(model: Path, tiny_model: Path, dtype: str) -> None:
    assert native_pages(torch.bfloat16, 16, 16), "the native library is not built"
    every = requests(96 if model == tiny_model else SHORT)
    engine = Engine(model, dtype=dtype, **UNCACHED)
    alone: Said = {}
    for request in every:
        alone |= engine.run([request])
    engine.executor.close()
    for name, variant in VARIANTS.items():
        engine = Engine(model, dtype=dtype, **variant.keys)
        assert engine.executor.depth == 1 + ("overlapped" in name)
        assert bool(engine.capacity.prompt_tokens) == ("usual" in name)
        assert engine.run(every) == alone, name
        assert variant.happened(engine.scheduler.counters), name
        assert engine.run(resumed(every, alone)) == after(alone), f"resumed, {name}"
        engine.executor.close()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_text_is_scored_as_a_prompt_as_when_it_was_made(model: Path, dtype: str) -> None:
    engine, every = Engine(model, dtype=dtype), requests(SHORT)
    said, params = engine.run(every), SamplingParams(prompt_logprobs=1, max_tokens=1)
    for request in every:
        whole = (*request.prompt, *(token for token, _ in said[request.id]))
        engine.loop.add(Request(id=request.id, prompt=whole, params=params))
    while engine.loop.unfinished:
        for update in engine.loop.step():
            made = [entry for _, entry in said[update.id]]
            assert update.prompt_logprobs is not None
            assert list(update.prompt_logprobs[-len(made) :]) == made
    engine.executor.close()


def resumed(every: list[Request], alone: Said) -> list[Request]:
    """Each request as another engine takes it up after some tokens."""
    made = []
    for request in every:
        emitted = tuple(token for token, _ in alone[request.id][: cut(alone[request.id])])
        params, prompt = request.params, request.prompt
        made.append(Request(id=request.id, prompt=prompt, params=params, emitted=emitted))
    return made


def after(alone: Said) -> Said:
    return {key: said[cut(said) :] for key, said in alone.items()}


def cut(said: list[tuple[int, object]]) -> int:
    """After how many tokens a text is taken up anew: every time elsewhere in it."""
    return 1 + 7 * said[0][0] % (len(said) - 1)


def test_every_kind_of_model_is_replayed(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        Engine(model).executor.close()
    assert "op by op" not in caplog.text
