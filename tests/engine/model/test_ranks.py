"""Ranks that share a model say what it says alone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from shoal.engine.errors import ConfigError, WorkerLost
from shoal.engine.model.config import read_config
from shoal.engine.model.load import load
from shoal.engine.model.mesh import Mesh, team
from shoal.engine.model.zoo.registry import build
from shoal.engine.worker.exchange import Exchange
from shoal.kernels.cpu.structures import Kind
from shoal.kernels.cpu.tape import Tape
from torch import Tensor

from .twins import (
    WINDOWS,
    Twin,
    difference,
    falcon,
    falcon_new,
    falcon_rw,
    gpt2,
    llama,
    mistral,
    prompts,
    qwen2,
    qwen3,
)

RANKS = {
    "llama-biases": llama(
        num_attention_heads=8, num_key_value_heads=2, attention_bias=True, mlp_bias=True
    ),
    "llama-mqa-tied": llama(num_key_value_heads=1, tie_word_embeddings=True),
    "qwen2-windows": qwen2(num_key_value_heads=4, **WINDOWS),
    "qwen3": qwen3(num_attention_heads=8, num_key_value_heads=2),
    "mistral": mistral(num_attention_heads=8, num_key_value_heads=2, head_dim=24),
    "gpt2": gpt2(n_inner=136, max_position_embeddings=103),
    "gpt2-untied": gpt2(tie_word_embeddings=False, scale_attn_by_inverse_layer_idx=True),
    "falcon-7b": falcon(),
    "falcon-40b": falcon_new(num_attention_heads=8, num_kv_heads=2),
    "falcon-40b-mha": falcon_new(num_kv_heads=4, alibi=True, bias=True),
    "falcon-11b": falcon_new(num_ln_in_parallel_attn=1, tie_word_embeddings=False),
    "falcon-rw": falcon_rw(),
    "falcon-rw-12-heads": falcon_rw(hidden_size=96, num_attention_heads=12, parallel_attn=True),
}
"""The vocabulary of 331 is no multiple of 2 or 4; key-value heads are fewer than ranks."""


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", RANKS)
def test_ranks_share_a_model(
    name: str, size: int, tmp_path: Path, random_model: Any, paged: Any
) -> None:
    random_model(RANKS[name], tmp_path)
    texts = prompts(Twin(RANKS[name], (1, 33, 50)))

    def rank(mesh: Any) -> tuple[dict[str, Tensor], dict[str, list[int]], str]:
        torch.set_num_threads(1)
        loaded = load(tmp_path, mesh=mesh, dtype="float32")
        logits = paged(loaded.model).step(texts)
        return logits, paged(loaded.model).greedy(texts, 8), loaded.digest

    [(right, text, digest)] = run_team(1, rank)
    for logits, found, own in run_team(size, rank):
        assert found == text
        assert own == digest  # or the ranks would take each other's weights for others
        for key in texts:
            assert difference(logits[key], right[key]) < 1e-5


def run_team(size: int, rank: Any) -> list[Any]:
    with ThreadPoolExecutor(size) as threads:
        return list(threads.map(rank, team(size)))


SUMS = {"llama-mqa-tied": 5, "qwen3": 5, "gpt2": 5, "falcon-40b-mha": 3}
"""Over ranks, in a step of two layers: behind the embedding, and once or twice in each layer."""


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", SUMS)
def test_ranks_of_a_node_add_up_inside_the_step(
    name: str, size: int, tmp_path: Path, random_model: Any, paged: Any
) -> None:
    random_model(RANKS[name], tmp_path)
    texts = prompts(Twin(RANKS[name], (1, 33, 50)))

    def rank(mesh: Mesh) -> tuple[dict[str, Tensor], dict[str, list[int]], Tape]:
        torch.set_num_threads(1)
        loaded = load(tmp_path, mesh=mesh, dtype="float32", packed=True)
        logits, text = paged(loaded.model).step(texts), paged(loaded.model)
        return logits, text.greedy(texts, 8), text.forward.tape

    right, text, _ = rank(Mesh())
    found = run_node(size, rank)
    for logits, own, tape in found:
        assert own == text
        assert all(torch.equal(logits[key], found[0][0][key]) for key in texts)
        assert all(difference(logits[key], right[key]) < 1e-5 for key in texts)
        assert all(line.kind is not None for line in tape.lines), "a call cuts the step"
        assert [line.kind for line in tape.lines].count(Kind.REDUCE) == SUMS[name]


def test_sums_over_ranks_do_not_depend_on_company(
    tmp_path: Path, random_model: Any, paged: Any
) -> None:
    random_model(RANKS["qwen3"], tmp_path)
    texts = prompts(Twin(RANKS["qwen3"], (1, 33, 300)))

    def rank(mesh: Mesh) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        torch.set_num_threads(1)
        model = load(tmp_path, mesh=mesh, dtype="bfloat16", packed=True).model
        alone = paged(model)
        return paged(model).step(texts), {k: alone.step({k: texts[k]})[k] for k in texts}

    for together, alone in run_node(2, rank):
        assert all(torch.equal(together[key], alone[key]) for key in texts)


def run_node(size: int, rank: Callable[[Mesh], Any]) -> list[Any]:
    with ThreadPoolExecutor(size) as threads:
        node = exchanges(size)
        try:
            return list(threads.map(rank, [exchange.mesh() for exchange in node]))
        finally:
            for exchange in node:
                exchange.close()


def exchanges(size: int) -> list[Exchange]:
    """Ranks that share memory as those of a node do, each for a thread of its own."""
    barrier, folders = threading.Barrier(size, timeout=60), [""]

    def share(folder: str) -> str:
        folders[0] = folder or folders[0]
        barrier.wait()
        return folders[0]

    with ThreadPoolExecutor(size) as threads:
        return list(threads.map(lambda i: Exchange(i, size, share, barrier.wait), range(size)))


def test_a_rank_that_has_left_is_named_with_the_operation(
    tmp_path: Path, random_model: Any, paged: Any
) -> None:
    random_model(RANKS["qwen3"], tmp_path)
    left, stays = exchanges(2)
    model = paged(load(tmp_path, mesh=stays.mesh(), packed=True).model)
    left.close()
    with pytest.raises(WorkerLost, match=r"beside this one has ended, at .*, reduce"):
        model.step({"a": [1, 2, 3]})
    stays.close()


ARCHITECTURE_OF = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "falcon": "FalconForCausalLM",
}


@pytest.mark.parametrize(
    ("config", "size", "word"),
    [
        (llama(num_attention_heads=4), 3, "heads"),
        (llama(num_attention_heads=6, hidden_size=96, num_key_value_heads=3), 2, "k_proj heads"),
        (llama(num_attention_heads=2), 4, "attention heads"),
        (llama(intermediate_size=98), 4, "columns"),
        (mistral(num_attention_heads=6, num_key_value_heads=3, head_dim=16), 2, "k_proj heads"),
        (gpt2(num_attention_heads=2), 4, "attention heads"),
        (gpt2(hidden_size=60, num_attention_heads=3), 2, "heads"),
        (gpt2(n_inner=98), 4, "columns"),
        (falcon(hidden_size=56, num_attention_heads=7), 2, "q_proj heads"),
        (falcon_new(hidden_size=96, num_attention_heads=6, num_kv_heads=3), 2, "k_proj heads"),
        (falcon_rw(hidden_size=48, num_attention_heads=3), 2, "heads"),
    ],
)
def test_uneven_ranks_are_refused(
    config: Any, size: int, word: str, tmp_path: Path, random_model: Any
) -> None:
    config.architectures = [ARCHITECTURE_OF[config.model_type]]
    config.save_pretrained(tmp_path)
    values = read_config(tmp_path)
    with pytest.raises(ConfigError, match=f"tensor_parallel_size={size}.*{word}") as error:
        build(values, team(size)[1], torch.float32, "meta")
    assert error.value.key == "tensor_parallel_size"
