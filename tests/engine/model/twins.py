"""The configurations that are built here and in transformers, and what their tests share."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    FalconConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

torch.set_num_threads(1)

SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 331,
    "max_position_embeddings": 256,
    "eos_token_id": None,
    "bos_token_id": None,
}
GROUPED = {**SMALL, "intermediate_size": 96, "num_key_value_heads": 2}


def llama(**values: Any) -> LlamaConfig:
    return LlamaConfig(**{**GROUPED, **values})


def mistral(**values: Any) -> MistralConfig:
    return MistralConfig(**{**GROUPED, "sliding_window": 24, **values})


def qwen2(**values: Any) -> Qwen2Config:
    return Qwen2Config(**{**GROUPED, **values})


def qwen3(**values: Any) -> Qwen3Config:
    return Qwen3Config(**{**GROUPED, "head_dim": 32, **values})


def gpt2(**values: Any) -> GPT2Config:
    return GPT2Config(**{**SMALL, **values})


def falcon(**values: Any) -> FalconConfig:
    """The layout of Falcon-7B: one key-value head, attention beside feed-forward, one norm."""
    return FalconConfig(**{**SMALL, **values})


def falcon_new(**values: Any) -> FalconConfig:
    """The layout of Falcon-40B: grouped key-value heads and a norm for each branch."""
    return falcon(**{"new_decoder_architecture": True, "num_kv_heads": 2, **values})


def falcon_rw(**values: Any) -> FalconConfig:
    """The layout of Falcon-RW: one branch after the other, biases, alibi."""
    plain = {"multi_query": False, "parallel_attn": False, "bias": True, "alibi": True}
    return falcon(**{**plain, **values})


@dataclass(frozen=True)
class Twin:
    """A configuration, the prompts' lengths, and the longest text where it matters.

    `greedy`: whether text is compared too.
    """

    config: Any
    lengths: tuple[int, ...] = (1, 7, 40, 90)
    max_len: int | None = None
    block_size: int = 16
    greedy: bool = False


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR = {"rope_type": "linear", "rope_theta": 5e3, "factor": 2.5}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "short_factor": [1.0 + i / 20 for i in range(8)],
    "long_factor": [1.5 + i / 5 for i in range(8)],
}
ROPES = {"linear": LINEAR, "dynamic": DYNAMIC, "llama3": LLAMA3, "yarn": YARN, "longrope": LONG}
WINDOWS = {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1}
ACROSS = (1, 20, 30, 100)
"""Lengths on both sides of a window of 24."""

LLAMA_TWINS = {
    "llama-gqa": Twin(llama(), greedy=True),
    "llama-mha": Twin(llama(num_key_value_heads=4), block_size=32),
    "llama-mqa": Twin(llama(num_key_value_heads=1)),
    "llama-biases": Twin(llama(attention_bias=True, mlp_bias=True)),
    "llama-tied": Twin(llama(tie_word_embeddings=True), block_size=32, greedy=True),
    "llama-head-24": Twin(llama(head_dim=24)),
    "llama-head-40": Twin(llama(head_dim=40), block_size=32),
    "llama-long-prompt": Twin(llama(max_position_embeddings=512), (300, 1, 257)),
    "llama-rope-llama3": Twin(llama(rope_parameters=LLAMA3), greedy=True),
    "llama-rope-linear": Twin(
        llama(rope_parameters=LINEAR, max_position_embeddings=64), (90, 5), greedy=True
    ),
    "llama-rope-dynamic-short": Twin(llama(rope_parameters=DYNAMIC), max_len=256, greedy=True),
    "llama-rope-dynamic-long": Twin(
        llama(rope_parameters=DYNAMIC, max_position_embeddings=32), (90,), max_len=90
    ),
    "llama-rope-yarn": Twin(llama(rope_parameters=YARN), greedy=True),
    "llama-rope-yarn-mscale": Twin(
        llama(rope_parameters={**YARN, "mscale": 0.8, "mscale_all_dim": 0.5, "truncate": False})
    ),
    "llama-rope-yarn-betas": Twin(
        llama(rope_parameters={**YARN, "beta_fast": 8, "beta_slow": 2, "attention_factor": 1.3})
    ),
    "llama-rope-longrope-short": Twin(
        llama(rope_parameters=LONG), (5, 40), max_len=64, greedy=True
    ),
    "llama-rope-longrope-long": Twin(
        llama(rope_parameters=LONG), (90, 65), max_len=256, greedy=True
    ),
}
QWEN_TWINS = {
    "qwen2": Twin(qwen2()),
    "qwen2-r1-distill": Twin(
        qwen2(use_sliding_window=False, sliding_window=24, max_window_layers=1),
        ACROSS,
        greedy=True,
    ),
    "qwen2-windows": Twin(qwen2(**WINDOWS), ACROSS, greedy=True),
    "qwen2-layer-types": Twin(
        qwen2(
            use_sliding_window=True,
            sliding_window=7,
            layer_types=["sliding_attention", "full_attention"],
        ),
        (160, 3),
        block_size=32,
    ),
    "qwen2-rope-yarn": Twin(
        qwen2(rope_parameters=YARN, max_position_embeddings=64), (100, 3), greedy=True
    ),
    "qwen3": Twin(qwen3(), greedy=True),
    "qwen3-tied": Twin(qwen3(tie_word_embeddings=True, attention_bias=True), block_size=32),
    "qwen3-windows": Twin(
        qwen3(
            use_sliding_window=True,
            sliding_window=24,
            layer_types=["full_attention", "sliding_attention"],
        ),
        ACROSS,
        greedy=True,
    ),
    "qwen3-rope-yarn": Twin(
        qwen3(rope_parameters=YARN, max_position_embeddings=64), (100, 3), greedy=True
    ),
}
MISTRAL_TWINS = {
    "mistral-window": Twin(mistral(), ACROSS, greedy=True),
    "mistral-window-7": Twin(mistral(sliding_window=7), (160, 3), block_size=32),
    "mistral-full": Twin(mistral(sliding_window=None), ACROSS),
    "mistral-head-40": Twin(mistral(head_dim=40, num_attention_heads=6), ACROSS, greedy=True),
    "mistral-mha-tied": Twin(mistral(num_key_value_heads=4, tie_word_embeddings=True), ACROSS),
    "mistral-rope-yarn": Twin(
        mistral(rope_parameters=YARN, max_position_embeddings=64), (100, 3), greedy=True
    ),
    "mistral-rope-llama3": Twin(mistral(rope_parameters=LLAMA3, sliding_window=None)),
    "mistral-deep": Twin(mistral(num_hidden_layers=5, hidden_size=96), (150, 2)),
}
GPT2_TWINS = {
    "gpt2": Twin(gpt2(), greedy=True),
    "gpt2-to-the-end": Twin(gpt2(max_position_embeddings=100), (100, 76, 3), block_size=32),
    "gpt2-gelu": Twin(gpt2(activation_function="gelu")),
    "gpt2-relu": Twin(gpt2(activation_function="relu"), greedy=True),
    "gpt2-inner-136": Twin(gpt2(n_inner=136, layer_norm_epsilon=1e-3)),
    "gpt2-scaled-by-layer": Twin(
        gpt2(num_hidden_layers=4, scale_attn_by_inverse_layer_idx=True), greedy=True
    ),
    "gpt2-unscaled": Twin(gpt2(scale_attn_weights=False)),
    "gpt2-upcast": Twin(gpt2(reorder_and_upcast_attn=True, tie_word_embeddings=False)),
    "gpt2-heads-of-8": Twin(
        gpt2(hidden_size=40, num_attention_heads=5, num_hidden_layers=3), (1, 130), block_size=32
    ),
}
FALCON_TWINS = {
    "falcon-7b": Twin(falcon(), greedy=True),
    "falcon-7b-heads-of-8": Twin(falcon(hidden_size=56, num_attention_heads=7), (130, 2)),
    "falcon-40b": Twin(falcon_new(), greedy=True),
    "falcon-40b-mha": Twin(falcon_new(num_kv_heads=4), block_size=32),
    "falcon-40b-groups-of-3": Twin(falcon_new(hidden_size=96, num_attention_heads=6), (130, 2)),
    "falcon-11b": Twin(
        falcon_new(num_ln_in_parallel_attn=1, tie_word_embeddings=False, ffn_hidden_size=136),
        greedy=True,
    ),
    "falcon-rw": Twin(falcon_rw(), (1, 7, 40, 200), greedy=True),
    "falcon-rw-6-heads-of-24": Twin(
        falcon_rw(hidden_size=144, num_attention_heads=6), (1, 230), greedy=True
    ),
    "falcon-rw-12-heads-far": Twin(
        falcon_rw(hidden_size=96, num_attention_heads=12, max_position_embeddings=512),
        (450, 3),
        greedy=True,
    ),
    "falcon-rw-parallel": Twin(falcon_rw(parallel_attn=True), (150, 2)),
    "falcon-alibi-7b": Twin(falcon(alibi=True, hidden_size=80, num_attention_heads=5), (150, 2)),
    "falcon-alibi-40b": Twin(falcon_new(alibi=True, bias=True), (150, 2), greedy=True),
    "falcon-sequential": Twin(falcon(parallel_attn=False, bias=True), greedy=True),
    "falcon-relu": Twin(falcon(activation="relu")),
    "falcon-rope-linear": Twin(
        falcon(rope_parameters=LINEAR, max_position_embeddings=64), (90, 5), greedy=True
    ),
    "falcon-rope-dynamic-long": Twin(
        falcon_new(rope_parameters=DYNAMIC, max_position_embeddings=32), (90,), max_len=90
    ),
    "falcon-rope-yarn": Twin(falcon_new(rope_parameters=YARN, max_position_embeddings=64), (90, 5)),
}
"""Alibi's roundings to bfloat16 show past position 256, and with 9 heads or more."""

TWINS = {**LLAMA_TWINS, **QWEN_TWINS, **MISTRAL_TWINS, **GPT2_TWINS, **FALCON_TWINS}
"""A long dynamic twin has one text, and no text grows: transformers changes the angles of a text
as it grows, here they are fixed."""


def prompts(twin: Twin) -> dict[str, list[int]]:
    generator = torch.Generator().manual_seed(1)
    return {
        f"{place}:{length}": torch.randint(0, 331, (length,), generator=generator).tolist()
        for place, length in enumerate(twin.lengths)
    }


def expected(model: Any, tokens: list[int]) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = model(torch.tensor([tokens])).logits[0]
    return logits


def chunks(texts: dict[str, list[int]], sizes: tuple[int, ...]) -> Iterator[dict[str, list[int]]]:
    """Steps in which each text goes on by the next of the sizes, no two by the same."""
    left = dict(texts)
    for step in itertools.count():
        takes = {key: sizes[(step + place) % len(sizes)] for place, key in enumerate(texts)}
        rows = {key: tokens[: takes[key]] for key, tokens in left.items() if tokens}
        if not rows:
            return
        yield rows
        left = {key: tokens[takes[key] :] for key, tokens in left.items()}


def difference(found: Tensor, right: Tensor) -> float:
    """The largest difference, relative to the largest logit."""
    assert found.dtype == torch.float32 and found.shape == right.shape
    assert found.isfinite().all()
    return float((found - right).abs().max() / right.abs().max())
