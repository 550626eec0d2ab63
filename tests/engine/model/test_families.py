"""Configurations and checkpoints as families spelled them over the years."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from shoal.engine.errors import LoadError
from shoal.engine.model import families
from shoal.engine.model.config import model_facts, read_config
from shoal.engine.model.load import load
from shoal.engine.model.mesh import Mesh
from shoal.engine.model.zoo.registry import build
from shoal.engine.sizing import Footprint, token_width
from shoal.engine.worker.worker import footprint
from transformers import FalconConfig, GPT2Config, MistralConfig

from .twins import falcon, falcon_new, falcon_rw, gpt2, mistral


@pytest.mark.parametrize(
    ("config", "names", "defaults"),
    [
        (GPT2Config(), families.GPT2_NAMES, families.GPT2_DEFAULTS),
        (FalconConfig(), families.FALCON_NAMES, families.FALCON_DEFAULTS),
        (MistralConfig(), {}, families.MISTRAL_DEFAULTS),
    ],
)
def test_defaults_are_those_of_transformers(
    config: Any, names: dict[str, str], defaults: dict[str, Any]
) -> None:
    theirs = {ours: theirs for theirs, ours in names.items() if hasattr(config, theirs)}
    for name, value in defaults.items():
        assert getattr(config, theirs.get(name, name)) == value, name


def rewrite(folder: Path, values: dict[str, Any]) -> None:
    (folder / "config.json").write_text(json.dumps(values))


def sizes(folder: Path, dtype: torch.dtype) -> Footprint:
    config = read_config(folder)
    return footprint(config, dtype, build(config, Mesh(), dtype, "meta"))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    model: Any = load(folder, dtype="float32").model
    return dict(model.named_parameters())


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def test_gpt2_as_it_was_published(tmp_path: Path, random_model: Any) -> None:
    """No first word before the names, causal masks among the weights, few words in config.json."""
    random_model(gpt2(), tmp_path)
    right = weights(tmp_path)
    path = tmp_path / "model.safetensors"
    bare = {name.removeprefix("transformer."): w for name, w in load_file(path).items()}
    for index in range(2):
        bare[f"h.{index}.attn.bias"] = torch.ones(1, 1, 256, 256, dtype=torch.uint8)
        bare[f"h.{index}.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(bare, path)
    rewrite(
        tmp_path,
        {
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            "n_ctx": 256,
            "n_embd": 64,
            "n_head": 4,
            "n_layer": 2,
            "n_positions": 256,
            "vocab_size": 331,
        },
    )
    assert same(weights(tmp_path), right)
    save_file({**bare, "lm_head.weight": bare["wte.weight"].clone()}, path)
    assert same(weights(tmp_path), right)
    path.unlink()
    torch.save(bare, tmp_path / "pytorch_model.bin")
    assert same(weights(tmp_path), right)
    (tmp_path / "pytorch_model.bin").unlink()
    save_file({**bare, "h.0.attn.other": torch.ones(1)}, path)
    with pytest.raises(LoadError, match=r"holds 'h\.0\.attn\.other'"):
        load(tmp_path)


OLD_FALCONS = {
    "7B": (falcon(), {"multi_query": True, "parallel_attn": True}),
    "40B": (falcon_new(), {"n_head_kv": 2, "model_type": "RefinedWeb"}),
    "RW": (
        falcon_rw(),
        {"multi_query": False, "parallel_attn": False, "bias": True, "alibi": True},
    ),
}


@pytest.mark.parametrize("name", OLD_FALCONS)
def test_falcon_as_it_was_published(
    name: str, tmp_path: Path, random_model: Any, paged: Any
) -> None:
    config, values = OLD_FALCONS[name]
    random_model(config, tmp_path)
    right = paged(load(tmp_path, dtype="float32").model).step({"": list(range(40))})[""]
    old = {
        "architectures": ["RWForCausalLM"],
        "model_type": "RefinedWebModel",
        "hidden_size": 64,
        "n_head": 4,
        "n_layer": 2,
        "vocab_size": 331,
        "layer_norm_epsilon": 1e-5,
        "bias": False,
        "alibi": False,
    }
    rewrite(tmp_path, {**old, **values})
    assert torch.equal(
        paged(load(tmp_path, dtype="float32").model).step({"": list(range(40))})[""], right
    )
    assert model_facts(tmp_path).max_model_len == 2048


def sized_as(folder: Path, dtype: torch.dtype) -> Footprint:
    config = read_config(folder)
    return footprint(config, dtype, build(config, Mesh(), dtype, "meta"))


def test_a_falcon_with_one_head_says_how_many_it_has_not(tmp_path: Path) -> None:
    """Falcon-7B's config.json names 71 key-value heads, of which there is one."""
    values = {
        "architectures": ["FalconForCausalLM"],
        "hidden_size": 4544,
        "num_attention_heads": 71,
        "num_hidden_layers": 32,
        "num_kv_heads": 71,
        "multi_query": True,
        "vocab_size": 65024,
    }
    rewrite(tmp_path, values)
    facts = model_facts(tmp_path)
    assert (facts.max_model_len, facts.eos_token_ids) == (2048, {11})
    sized = sized_as(tmp_path, torch.bfloat16)
    assert {(spec.num_kv_heads, spec.head_size) for spec in sized.specs} == {(1, 64)}
    assert sized.width == token_width(4544, 4 * 4544, 71, 1, 64)
    assert 6.9e9 < sized.weight_bytes / 2 < 7.0e9


@pytest.mark.parametrize(
    ("config", "architecture", "width", "heads", "length"),
    [
        (gpt2(), "GPT2LMHeadModel", token_width(64, 256, 4, 4, 16), 4, 256),
        (gpt2(n_inner=136), "GPT2LMHeadModel", token_width(64, 136, 4, 4, 16), 4, 256),
        (falcon_new(), "FalconForCausalLM", token_width(64, 256, 4, 2, 16), 2, 256),
        (falcon_rw(), "FalconForCausalLM", token_width(64, 256, 4, 4, 16), 4, 256),
        (mistral(head_dim=40), "MistralForCausalLM", token_width(64, 96, 4, 2, 40), 2, 256),
    ],
)
def test_facts_and_footprint(
    config: Any, architecture: str, width: int, heads: int, length: int, tmp_path: Path
) -> None:
    config.architectures = [architecture]
    config.eos_token_id = 7
    config.save_pretrained(tmp_path)
    facts = model_facts(tmp_path)
    assert (facts.max_model_len, facts.vocab_size) == (length, 331)
    assert facts.eos_token_ids == {7}
    sized = sized_as(tmp_path, torch.float32)
    assert (sized.width, sized.max_model_len) == (width, length)
    assert {spec.num_kv_heads for spec in sized.specs} == {heads}


@pytest.mark.parametrize(
    ("values", "window"),
    [({}, 4096), ({"sliding_window": None}, None), ({"sliding_window": 9}, 9)],
)
def test_the_window_of_a_mistral(
    values: dict[str, Any], window: int | None, tmp_path: Path
) -> None:
    """Version 0.1 names it, later ones say null, and silence means the default"""
    config = mistral().to_dict()
    config.pop("sliding_window")
    rewrite(tmp_path, {**config, **values, "architectures": ["MistralForCausalLM"]})
    sized = sized_as(tmp_path, torch.float32)
    assert {spec.window for spec in sized.specs} == {window}


@pytest.mark.parametrize(
    ("config", "architecture", "words"),
    [
        (gpt2(activation_function="tanh"), "GPT2LMHeadModel", "hidden_act 'tanh' is not built"),
        (falcon(activation="silu"), "FalconForCausalLM", "hidden_act 'silu' is not built"),
        (gpt2(add_cross_attention=True), "GPT2LMHeadModel", "add_cross_attention needs an encoder"),
    ],
)
def test_what_is_not_built_is_refused(
    config: Any, architecture: str, words: str, tmp_path: Path
) -> None:
    config.architectures = [architecture]
    config.save_pretrained(tmp_path)
    with pytest.raises(LoadError, match=words):
        load(tmp_path, load_format="dummy")


def test_dummy_parts_of_one_tensor_differ(tmp_path: Path) -> None:
    config = gpt2()
    config.architectures = ["GPT2LMHeadModel"]
    config.save_pretrained(tmp_path)
    model: Any = load(tmp_path, load_format="dummy").model
    q, k, v = model.transformer.h["0"].attn.c_attn.weight.chunk(3)
    assert not torch.equal(q, k) and not torch.equal(k, v)
