"""Models here and in transformers, same weights: same logits, same text."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from shoal.engine.errors import ConfigError
from shoal.engine.model.config import read_config
from shoal.engine.model.load import load
from shoal.engine.model.mesh import team
from shoal.engine.model.zoo.registry import build
from torch import Tensor
from transformers import LlamaConfig, Qwen2Config, Qwen3Config

torch.set_num_threads(1)

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 331,
    "max_position_embeddings": 256,
    "eos_token_id": None,
    "bos_token_id": None,
}


def llama(**values: Any) -> LlamaConfig:
    return LlamaConfig(**{**SMALL, **values})


def qwen2(**values: Any) -> Qwen2Config:
    return Qwen2Config(**{**SMALL, **values})


def qwen3(**values: Any) -> Qwen3Config:
    return Qwen3Config(**{**SMALL, "head_dim": 32, **values})


@dataclass(frozen=True)
class Twin:
    """A configuration, the prompts' lengths, and the longest text where it matters."""

    config: Any
    lengths: tuple[int, ...] = (1, 7, 40, 90)
    max_len: int | None = None
    block_size: int = 16
    more: dict[str, Any] = field(default_factory=dict)


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
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
WINDOWS = {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1}

TWINS = {
    "llama-gqa": Twin(llama()),
    "llama-mha": Twin(llama(num_key_value_heads=4), block_size=32),
    "llama-mqa": Twin(llama(num_key_value_heads=1)),
    "llama-biases": Twin(llama(attention_bias=True, mlp_bias=True)),
    "llama-tied": Twin(llama(tie_word_embeddings=True), block_size=32),
    "llama-head-24": Twin(llama(head_dim=24)),
    "llama-head-40": Twin(llama(head_dim=40), block_size=32),
    "llama-long-prompt": Twin(llama(max_position_embeddings=512), (300, 1, 257)),
    "llama-rope-llama3": Twin(llama(rope_parameters=LLAMA3)),
    "llama-rope-linear": Twin(
        llama(rope_parameters={"rope_type": "linear", "rope_theta": 5e3, "factor": 2.5})
    ),
    "llama-rope-dynamic-short": Twin(
        llama(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}),
        max_len=256,
    ),
    "llama-rope-dynamic-long": Twin(
        llama(
            rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
            max_position_embeddings=32,
        ),
        (90,),
        max_len=90,
    ),
    "llama-rope-yarn": Twin(llama(rope_parameters=YARN)),
    "llama-rope-yarn-mscale": Twin(
        llama(rope_parameters={**YARN, "mscale": 0.8, "mscale_all_dim": 0.5, "truncate": False})
    ),
    "llama-rope-longrope-short": Twin(llama(rope_parameters=LONG), (5, 40), max_len=64),
    "llama-rope-longrope-long": Twin(llama(rope_parameters=LONG), (90,), max_len=256),
    "qwen2": Twin(qwen2()),
    "qwen2-windows": Twin(qwen2(**WINDOWS), (1, 20, 30, 100)),
    "qwen2-layer-types": Twin(
        qwen2(
            use_sliding_window=True,
            sliding_window=7,
            layer_types=["sliding_attention", "full_attention"],
        ),
        (160, 3),
        block_size=32,
    ),
    "qwen3": Twin(qwen3()),
    "qwen3-tied": Twin(qwen3(tie_word_embeddings=True, attention_bias=True), block_size=32),
    "qwen3-windows": Twin(
        qwen3(
            use_sliding_window=True,
            sliding_window=24,
            layer_types=["full_attention", "sliding_attention"],
        ),
        (1, 20, 30, 100),
    ),
}
"""The small dynamic twin has no `-long` texts beside short ones: transformers changes the angles
of a text as it grows, here they are fixed."""


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: Any, random_model: Any) -> Any:
    """A twin's folder and transformers' model, made when first asked for."""
    made: dict[str, tuple[Path, Any]] = {}

    def get(name: str) -> tuple[Path, Any]:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            made[name] = folder, random_model(TWINS[name].config, folder)
        return made[name]

    return get


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


@pytest.mark.parametrize("name", TWINS)
def test_logits(name: str, checkpoint: Any, paged: Any) -> None:
    """Prefill at once; chunks of many sizes beside single tokens."""
    twin = TWINS[name]
    folder, twin_model = checkpoint(name)
    model = load(folder, dtype="float32", max_len=twin.max_len).model
    texts = prompts(twin)
    right = {key: expected(twin_model, tokens) for key, tokens in texts.items()}
    worst = 0.0
    whole = paged(model, block_size=twin.block_size).step(texts)
    for key in texts:
        worst = max(worst, difference(whole[key], right[key]))
    for seed, sizes in enumerate([(33, 1, 5, 1), (1, 16, 2)]):
        run = paged(model, block_size=twin.block_size, seed=seed)
        found: dict[str, list[Tensor]] = {key: [] for key in texts}
        for rows in chunks(texts, sizes):
            for key, logits in run.step(rows).items():
                found[key].append(logits)
        for key in texts:
            worst = max(worst, difference(torch.cat(found[key]), right[key]))
    print(f"\n{name:28} largest relative logit difference {worst:.1e}", end="")
    assert worst < 1e-4


@pytest.mark.parametrize("name", ["llama-biases", "qwen2-windows", "qwen3"])
def test_bfloat16_strays_no_further_than_transformers(
    name: str, checkpoint: Any, paged: Any
) -> None:
    twin = TWINS[name]
    folder, twin_model = checkpoint(name)
    model = load(folder, dtype="bfloat16").model
    rounded = copy.deepcopy(twin_model).bfloat16()
    for key, tokens in prompts(twin).items():
        exact = expected(twin_model, tokens)
        theirs = difference(expected(rounded, tokens).float(), exact)
        ours = difference(paged(model).step({key: tokens})[key], exact)
        assert 1e-4 < ours < max(0.02, 1.5 * theirs)


@pytest.mark.parametrize("name", ["llama-gqa", "llama-tied", "qwen2-windows", "qwen3-windows"])
def test_greedy_text(name: str, checkpoint: Any, paged: Any) -> None:
    """Token for token, alone and side by side, over the end of blocks and windows."""
    twin = TWINS[name]
    folder, twin_model = checkpoint(name)
    model = load(folder, dtype="float32").model
    texts = prompts(twin)
    right = {}
    for key, tokens in texts.items():
        with torch.inference_mode():
            whole = twin_model.generate(
                torch.tensor([tokens]),
                attention_mask=torch.ones(1, len(tokens), dtype=torch.long),
                max_new_tokens=24,
                do_sample=False,
                pad_token_id=0,
            )
        right[key] = whole[0, len(tokens) :].tolist()
    assert paged(model).greedy(texts, 24) == right
    for key, tokens in texts.items():
        assert paged(model, block_size=32, seed=3).greedy({key: tokens}, 24) == {key: right[key]}


RANKS = {
    "llama-biases": llama(
        num_attention_heads=8, num_key_value_heads=2, attention_bias=True, mlp_bias=True
    ),
    "llama-mqa-tied": llama(num_key_value_heads=1, tie_word_embeddings=True),
    "qwen2-windows": qwen2(num_key_value_heads=4, **WINDOWS),
    "qwen3": qwen3(num_attention_heads=8, num_key_value_heads=2),
}
"""The vocabulary of 331 is no multiple of 2 or 4; key-value heads are fewer than ranks."""


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", RANKS)
def test_ranks_share_a_model(
    name: str, size: int, tmp_path: Path, random_model: Any, paged: Any
) -> None:
    random_model(RANKS[name], tmp_path)
    texts = prompts(Twin(RANKS[name], (1, 33, 50)))

    def rank(mesh: Any) -> tuple[dict[str, Tensor], dict[str, list[int]]]:
        torch.set_num_threads(1)
        model = load(tmp_path, mesh=mesh, dtype="float32").model
        logits = paged(model).step(texts)
        return logits, paged(model).greedy(texts, 8)

    [(right, text)] = run_team(1, rank)
    for logits, found in run_team(size, rank):
        assert found == text
        for key in texts:
            assert difference(logits[key], right[key]) < 1e-5


def run_team(size: int, rank: Any) -> list[Any]:
    with ThreadPoolExecutor(size) as threads:
        return list(threads.map(rank, team(size)))


@pytest.mark.parametrize(
    ("config", "size", "word"),
    [
        (llama(num_attention_heads=4), 3, "heads"),
        (llama(num_attention_heads=6, hidden_size=96, num_key_value_heads=3), 2, "k_proj heads"),
        (llama(num_attention_heads=2), 4, "attention heads"),
        (llama(intermediate_size=98), 4, "columns"),
    ],
)
def test_uneven_ranks_are_refused(
    config: Any, size: int, word: str, tmp_path: Path, random_model: Any
) -> None:
    config.save_pretrained(tmp_path)
    values = read_config(tmp_path)
    values.values["architectures"] = ["LlamaForCausalLM"]
    with pytest.raises(ConfigError, match=f"tensor_parallel_size={size}.*{word}") as error:
        build(values, team(size)[1], torch.float32, "meta")
    assert error.value.key == "tensor_parallel_size"


def test_one_rows_nan_stays_its_own(checkpoint: Any, paged: Any) -> None:
    folder, _ = checkpoint("llama-gqa")
    model = load(folder, dtype="float32").model
    texts = {f"{n}": list(range(n)) for n in range(1, 17)}
    run = paged(model)
    run.step(texts)
    sick = run.blocks["5"][0][0]
    for kv in run.kv:
        kv[:, sick, :5] = torch.nan
    found = run.step({name: [7] for name in texts})
    for name, logits in found.items():
        assert logits.isfinite().all() == (name != "5")
        if name != "5":
            alone = paged(model)
            alone.step({name: texts[name]})
            assert difference(logits, alone.step({name: [7]})[name]) < 1e-5
