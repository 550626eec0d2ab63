"""A model cut into pipeline stages is the model."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from shoal.engine.model.batch import ModelInput
from shoal.engine.model.load import load
from shoal.engine.model.mesh import Mesh, Stage
from shoal.engine.worker.cache import Cache
from shoal.engine.worker.device import pick
from shoal.engine.worker.forward import Limits
from shoal.engine.worker.graphs import Taped, forward_of
from shoal.engine.worker.progress import Progress
from shoal.kernels.cpu.bindings import Pool
from torch import Tensor
from transformers import (
    FalconConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

WIDTHS: dict[str, Any] = {
    "vocab_size": 160,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
SIZES = {**WIDTHS, "intermediate_size": 48, "num_key_value_heads": 2}
CONFIGS = {
    "llama": LlamaConfig(**SIZES),
    "tied": Qwen3Config(**SIZES, head_dim=16, tie_word_embeddings=True),
    "windows": Qwen2Config(
        **SIZES,
        sliding_window=12,
        use_sliding_window=True,
        layer_types=["full_attention", "sliding_attention"] * 2,
    ),
    "mistral": MistralConfig(**SIZES, sliding_window=12),
    "gpt2": GPT2Config(**WIDTHS, n_inner=48, scale_attn_by_inverse_layer_idx=True),
    "gpt2-untied": GPT2Config(**WIDTHS, tie_word_embeddings=False),
    "falcon": FalconConfig(**WIDTHS),
    "falcon-alibi": FalconConfig(**WIDTHS, alibi=True, parallel_attn=False, bias=True),
}
CUTS = {
    "halves": [range(2), range(2, 4)],
    "uneven": [range(1), range(1, 3), range(3, 4)],
    "single": [range(i, i + 1) for i in range(4)],
}


class Chain:
    """Stages one behind the other, driven like one model."""

    recordable = False

    def __init__(self, stages: list[Any]) -> None:
        self.stages = stages
        self.cache_specs = [spec for stage in stages for spec in stage.cache_specs]
        self.parameters = stages[0].parameters

    def forward(self, batch: ModelInput, hidden: Tensor | None = None) -> Tensor:
        first = 0
        for stage in self.stages:
            own = slice(first, first := first + len(stage.cache_specs))
            part = dataclasses.replace(batch, kv=batch.kv[own], group_of=batch.group_of[own])
            hidden = stage.forward(part, hidden)
        assert hidden is not None
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        found: Tensor = self.stages[-1].logits(hidden)
        return found


def loaded_stages(folder: Path, cut: str) -> list[Any]:
    layers = CUTS[cut]
    return [
        load(folder, stage=Stage(part, i == 0, i == len(layers) - 1), packed=True).model
        for i, part in enumerate(layers)
    ]


def assert_same_steps(whole: Any, other: Any) -> None:
    """Prompts and what follows them have the same logits, to the bit."""
    draw = random.Random(1)
    prompts = {name: [draw.randrange(160) for _ in range(n)] for name, n in (("a", 40), ("b", 3))}
    for rows in (prompts, {"a": [5], "b": [7, 8]}):
        want, got = whole.step(rows), other.step(rows)
        assert all(torch.equal(want[row], got[row]) for row in rows)


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("name", CONFIGS)
def test_stages_are_the_model(
    name: str,
    cut: str,
    tmp_path: Path,
    random_model: Callable[..., Any],
    paged: Callable[..., Any],
) -> None:
    random_model(CONFIGS[name], tmp_path)
    stages = loaded_stages(tmp_path, cut)
    whole = paged(Chain([load(tmp_path, packed=True).model]))
    chain = paged(Chain(stages))
    assert_same_steps(whole, chain)


class Relay:
    """Stages one behind the other, each of which replays a step of its own."""

    def __init__(self, whole: Any, stages: list[Any]) -> None:
        self.forwards = []
        first = 0
        for stage in stages:
            own = slice(first, first := first + len(stage.cache_specs))
            cache = Cache(
                layers=tuple(whole.kv[own]),
                groups=tuple(whole.groups),
                group_of=tuple(whole.group_of[own]),
                block_size=whole.block_size,
                device=pick("cpu"),
            )
            limits = Limits(
                tokens=64,
                sequences=4,
                model_len=128,
                width=0 if own.start == 0 else SIZES["hidden_size"],
            )
            forward = forward_of(
                stage,
                cache,
                limits,
                Progress(),
                dtype=torch.float32,
                pool=Pool(1),
                last=stage is stages[-1],
            )
            assert isinstance(forward, Taped)
            self.forwards.append(forward)

    def hidden(self, batch: ModelInput) -> Tensor:
        hidden = None
        for forward in self.forwards:
            hidden = forward.hidden(batch, hidden).clone()
        assert hidden is not None
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        return self.forwards[-1].logits(hidden)


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("name", CONFIGS)
def test_stages_that_replay_a_step_are_the_model(
    name: str,
    cut: str,
    tmp_path: Path,
    random_model: Callable[..., Any],
    paged: Callable[..., Any],
) -> None:
    random_model(CONFIGS[name], tmp_path)
    whole = paged(load(tmp_path, packed=True).model)
    assert isinstance(whole.forward, Taped)
    stages = loaded_stages(tmp_path, cut)
    relay = paged(Chain(stages))
    relay.forward = Relay(relay, stages)
    assert_same_steps(whole, relay)


def test_a_stage_holds_its_part_of_the_weights(
    tmp_path: Path, random_model: Callable[..., Any]
) -> None:
    random_model(CONFIGS["llama"], tmp_path)
    whole = load(tmp_path).model
    first = load(tmp_path, stage=Stage(range(2), last=False)).model
    last = load(tmp_path, stage=Stage(range(2, 4), first=False), mesh=Mesh()).model
    count = [sum(p.numel() for p in model.parameters()) for model in (whole, first, last)]  # type: ignore[attr-defined]
    assert count[0] == count[1] + count[2]
