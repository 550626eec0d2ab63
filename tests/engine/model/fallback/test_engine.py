"""The fallback end to end: text through `LLM`, whatever the company."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from shoal.engine.llm import LLM
from shoal.engine.request import SamplingParams

from ...tiny_qwen3 import KEYS, save_qwen3
from .families import GREEDY, TWINS, VOCAB

torch.set_num_threads(1)

GREEDILY = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True, detokenize=False)
VARIANTS: dict[str, dict[str, Any]] = {
    "chunks of 16": {"max_num_batched_tokens": 16},
    "preempted": {"block_size": 4, "num_gpu_blocks_override": 48, "max_num_seqs": 8},
    "overlapped": {"async_scheduling": True, "enable_prefix_caching": False},
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("tokenizer"))
    save_qwen3(folder)
    return folder


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    """Some longer than the window, some with a beginning in common."""
    rng = random.Random(3)
    shared = [rng.randrange(VOCAB) for _ in range(48)]
    alone = [[rng.randrange(VOCAB) for _ in range(n)] for n in (3, 60)]
    return [*alone, *([*shared[:n], n] for n in (20, 40, 48))]


@pytest.mark.parametrize("name", GREEDY)
def test_text_is_that_of_transformers(
    name: str,
    tmp_path: Path,
    random_model: Any,
    tokenizer: str,
    prompts: list[list[int]],
) -> None:
    theirs = random_model(TWINS[name].config, tmp_path)
    right = []
    for prompt in prompts:
        with torch.inference_mode():
            whole = theirs.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                max_new_tokens=16,
                do_sample=False,
                pad_token_id=0,
            )
        right.append(whole[0, len(prompt) :].tolist())
    keys = {**KEYS, "tokenizer": tokenizer}
    with LLM(str(tmp_path), **keys) as llm:
        for _ in ("cold", "with the prefix cache warm"):
            assert texts(llm, prompts) == right
        assert [texts(llm, [prompt])[0] for prompt in prompts] == right
    for variant in VARIANTS.values() if name in ("gemma2", "mixtral") else ():
        with LLM(str(tmp_path), **{**keys, **variant}) as llm:
            assert texts(llm, prompts) == right


def texts(llm: LLM, prompts: list[list[int]]) -> list[list[int]]:
    given = [{"prompt_token_ids": prompt} for prompt in prompts]
    found = llm.generate(given, GREEDILY, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in found]


def test_dummy_weights(tmp_path: Path, tokenizer: str, prompts: list[list[int]]) -> None:
    config = TWINS["granite"].config
    config.architectures = ["GraniteForCausalLM"]
    config.save_pretrained(tmp_path)
    keys = {**KEYS, "tokenizer": tokenizer, "load_format": "dummy"}
    with LLM(str(tmp_path), **keys) as llm:
        assert [len(text) for text in texts(llm, prompts)] == [16] * len(prompts)
