"""Random models, requests and engines: what a request says is the same bits in any of them.

test_exactness.py goes through a grid; here each seed draws a model's shape, what requests ask of
sampling, when they come, and engines that cut, preempt and resume them.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import pytest
import torch
from shoal.engine.config import from_keys
from shoal.engine.core.scheduler import Scheduler
from shoal.engine.local import LocalExecutor
from shoal.engine.loop import Loop
from shoal.engine.request import FinishReason, Request, SamplingParams
from shoal.kernels.cpu.bindings import loaded
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

pytestmark = pytest.mark.skipif(loaded() is None, reason="the native library is not built")

LENGTH = 256
ALONE: dict[str, Any] = {
    "threads": 1,
    "max_model_len": LENGTH,
    "max_num_seqs": 32,
    "max_num_batched_tokens": 512,
    "block_size": 16,
    "num_gpu_blocks_override": 100,
    "enable_prefix_caching": False,
}


class Said(NamedTuple):
    """All that a sibling got."""

    tokens: list[int]
    logprobs: list[object]
    prompt: list[object]
    ends: list[object]


Answers = dict[tuple[str, int], Said]


class Engine:
    """A loop over a real executor, driven step by step."""

    def __init__(self, model: Path, **keys: Any) -> None:
        config = from_keys({"model": str(model), **ALONE, **keys})
        self.executor = LocalExecutor(config)
        capacity = self.executor.start(config)
        self.scheduler = Scheduler(
            config, capacity, depth=self.executor.depth, resident=self.executor.resident
        )
        self.loop = Loop(self.scheduler, self.executor)

    def run(self, requests: list[Request], every: int = 0) -> Answers:
        """All of them; one more comes after each `every` steps."""
        answers: Answers = {}
        coming, step = list(requests), 0
        while coming or self.loop.unfinished:
            while coming and (not every or step % every == 0 or not self.loop.unfinished):
                self.loop.add(coming.pop(0))
                step += 1
            for update in self.loop.step():
                assert update.finish is not FinishReason.ERROR, update.error
                said = answers.setdefault((update.id, update.sibling), Said([], [], [], []))
                said.tokens.extend(update.tokens)
                said.logprobs.extend(update.logprobs or ())
                said.prompt.extend(update.prompt_logprobs or ())
                said.ends.extend([(update.finish, update.stop_reason)] if update.finish else [])
            step += 1
        self.scheduler.verify()
        return answers


def shape(rng: Random) -> PreTrainedConfig:
    heads = rng.choice((1, 2, 4, 6))
    common: dict[str, Any] = {
        "vocab_size": rng.choice((97, 128, 257)),
        "num_hidden_layers": rng.choice((1, 2, 3)),
        "num_attention_heads": heads,
        "max_position_embeddings": LENGTH,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    size = rng.choice((16, 24, 32, 40, 64, 80))
    grouped = common | {
        "num_key_value_heads": rng.choice([n for n in (1, 2, 3) if heads % n == 0]),
        "hidden_size": rng.choice((48, 50, 96)),
        "intermediate_size": rng.choice((50, 96, 130)),
        "head_dim": size,
        "tie_word_embeddings": rng.random() < 0.5,
    }
    windows = {"use_sliding_window": True, "max_window_layers": 1}
    whole = common | {"hidden_size": heads * size}
    return rng.choice(
        (
            lambda: LlamaConfig(**grouped, attention_bias=True, mlp_bias=True),
            lambda: MistralConfig(**grouped, sliding_window=rng.choice((1, 17, 40))),
            lambda: Qwen3Config(**grouped, **windows, sliding_window=rng.choice((5, 33))),
            lambda: Qwen2Config(**(grouped | whole), **windows, sliding_window=24),
            lambda: GPT2Config(**whole, n_positions=LENGTH),
            lambda: FalconConfig(**whole, alibi=True, multi_query=False, parallel_attn=False),
            lambda: FalconConfig(**whole, new_decoder_architecture=True, num_kv_heads=1, bias=True),
        )
    )()


def saved(folder: Path, config: PreTrainedConfig, seed: int) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if weight.dim() > 1 or name.endswith("bias"):
                    weight.normal_(0, 0.15)
        model.save_pretrained(folder)
    return folder


def sampling(rng: Random, vocab: int) -> dict[str, Any]:
    """Some of what can be asked, by name."""
    asked: dict[str, Any] = {
        "presence_penalty": 0.7,
        "frequency_penalty": -0.4,
        "repetition_penalty": 1.3,
        "logit_bias": {rng.randrange(vocab): 2.5, 5: -100.0},
        "allowed_token_ids": rng.sample(range(vocab), 30),
        "bad_words_ids": ((5,), (7, 9), (11, 3, 4)),
        "min_tokens": 2,
        "stop_token_ids": rng.sample(range(3, vocab), 4),
        "min_p": 0.05,
        "top_k": rng.choice((1, 20, vocab)),
        "top_p": rng.choice((0.3, 0.95)),
        "logprobs": rng.choice((0, 3)),
        "prompt_logprobs": 1,
        "n": 3,
    }
    return {name: asked[name] for name in rng.sample(sorted(asked), rng.choice((0, 0, 1, 3)))}


def requests(rng: Random, vocab: int) -> list[Request]:
    shared = [rng.randrange(3, vocab) for _ in range(70)]
    made = []
    for number in range(14):
        own = [rng.randrange(3, vocab) for _ in range(rng.choice((1, 15, 16, 33, 60)))]
        params = SamplingParams(
            temperature=rng.choice((0.0, 0.0, 0.9)),
            seed=number - 3,
            max_tokens=rng.choice((2, 8, 20)),
            ignore_eos=rng.random() < 0.7,
            **sampling(rng, vocab),
        )
        prompt = shared[: rng.choice((0, 32, 45, 70))] + own
        made.append(Request(id=str(number), prompt=tuple(prompt), params=params))
    return made


def engine(rng: Random) -> dict[str, Any]:
    block = rng.choice((16, 32))
    return {
        "threads": rng.choice((1, 2, 3)),
        "max_num_seqs": rng.choice((4, 16)),
        "max_num_batched_tokens": rng.choice((16, 33, 512)),
        "block_size": block,
        "num_gpu_blocks_override": LENGTH // block + rng.choice((1, 4, 60)),
        "enable_prefix_caching": rng.random() < 0.7,
        "async_scheduling": rng.random() < 0.5,
    }


def cut(asked: list[Request], whole: Answers, rng: Random) -> tuple[list[Request], Answers]:
    """Siblings as another engine takes them up after some tokens, and what is left of each."""
    resumed, left = [], {}
    for request in asked:
        for sibling in range(request.params.n):
            said = whole[request.id, sibling]
            if len(said.tokens) < 2 or request.params.prompt_logprobs is not None:
                continue
            at, name = rng.randrange(1, len(said.tokens)), f"{request.id}.{sibling}"
            emitted, params = tuple(said.tokens[:at]), replace(request.params, n=1)
            resumed.append(
                replace(request, id=name, params=params, emitted=emitted, sibling=sibling)
            )
            left[name, sibling] = said._replace(
                tokens=said.tokens[at:], logprobs=said.logprobs[at:]
            )
    return resumed, left


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("seed", range(6))
def test_company_changes_no_bit(tmp_path: Path, seed: int, dtype: str) -> None:
    rng = Random(seed)
    config = shape(rng)
    model, asked = saved(tmp_path, config, seed), requests(rng, config.vocab_size)
    undisturbed, alone = Engine(model, dtype=dtype), Answers()
    for request in asked:
        alone |= undisturbed.run([request])
    undisturbed.executor.close()
    for _ in range(2):
        keys = engine(rng)
        busy = Engine(model, dtype=dtype, **keys)
        assert busy.run(asked, every=rng.choice((1, 5))) == alone, keys
        assert busy.run(asked) == alone, ("with what the first run left", keys)
        resumed, left = cut(asked, alone, rng)
        assert busy.run(resumed) == left, ("resumed", keys)
        busy.executor.close()
