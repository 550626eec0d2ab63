"""What the fallback cannot serve is refused by name, before a weight is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from shoal.engine.errors import ConfigError, LoadError
from shoal.engine.model.config import read_config
from shoal.engine.model.mesh import Mesh, Stage, team
from shoal.engine.model.zoo.registry import build

from .families import EXPERTS, HEADS, SMALL, WINDOWS

LATENT = {
    "q_lora_rank": 32,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
    "num_experts_per_token": 2,
}
MIXED = ["sliding_attention", "full_attention"] * 2
PLAIN = {key: value for key, value in SMALL.items() if key != "num_key_value_heads"}
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "MambaForCausalLM": ("Mamba", {"hidden_size": 64, "num_hidden_layers": 2}, "linear_attention"),
    "RwkvForCausalLM": ("Rwkv", {"hidden_size": 64, "num_hidden_layers": 2}, "rwkv|recurrent"),
    "JambaForCausalLM": ("Jamba", {**SMALL, **EXPERTS}, "linear_attention|Conv1d|mamba"),
    "RecurrentGemmaForCausalLM": ("RecurrentGemma", SMALL, "layer_types name linear_attention"),
    "Lfm2ForCausalLM": ("Lfm2", {**SMALL, "layer_types": ["conv", "full_attention"]}, "conv"),
    "FalconH1ForCausalLM": ("FalconH1", SMALL, "hybrid|Conv1d"),
    "Qwen3NextForCausalLM": ("Qwen3Next", {**HEADS, **EXPERTS}, "linear_attention"),
    "DeepseekV3ForCausalLM": ("DeepseekV3", {**SMALL, **EXPERTS, **LATENT}, "32.*16.*MLA"),
    "MiniCPM3ForCausalLM": ("MiniCPM3", SMALL, r"96.*16.*latent attention, MLA"),
    "GptOssForCausalLM": ("GptOss", {**HEADS, **EXPERTS, **WINDOWS}, "'s_aux'.*attention sinks"),
    "Llama4ForCausalLM": ("Llama4Text", {**HEADS, **EXPERTS}, "chunked_attention"),
    "DiffLlamaForCausalLM": ("DiffLlama", SMALL, "attend more than once a token"),
    "DogeForCausalLM": ("Doge", SMALL, "attention masks of its own"),
    "BloomForCausalLM": ("Bloom", {"hidden_size": 64, "n_layer": 2, "n_head": 4}, "interface"),
    "MptForCausalLM": ("Mpt", {"d_model": 64, "n_layers": 2, "n_heads": 4}, "interface"),
    "GPTNeoForCausalLM": (
        "GPTNeo",
        {"hidden_size": 64, "num_layers": 2, "attention_types": [[["global", "local"], 1]]},
        "interface",
    ),
    "XGLMForCausalLM": (
        "XGLM",
        {"d_model": 64, "num_layers": 2, "attention_heads": 4, "ffn_dim": 96},
        "interface",
    ),
    "BertLMHeadModel": ("Bert", PLAIN, "see what comes after them"),
    "Gemma3nForCausalLM": (
        "Gemma3nText",
        {**HEADS, "num_hidden_layers": 4, "num_kv_shared_layers": 2, "layer_types": MIXED},
        "num_kv_shared_layers=2",
    ),
}


def describe(architecture: str, family: str, values: dict[str, Any], folder: Path) -> Any:
    config = getattr(transformers, f"{family}Config")(**values)
    config.architectures = [architecture]
    config.save_pretrained(folder)
    return read_config(folder)


@pytest.mark.parametrize("architecture", REFUSED)
def test_what_a_paged_cache_cannot_serve(architecture: str, tmp_path: Path) -> None:
    family, values, words = REFUSED[architecture]
    config = describe(architecture, family, values, tmp_path)
    with pytest.raises(LoadError, match=words) as error:
        build(config, Mesh(), torch.float32, "meta")
    message = str(error.value)
    assert message.startswith(f"{tmp_path / 'config.json'}: {architecture}")
    assert "; take a model that" in message


def test_a_mask_that_is_no_window(tmp_path: Path, monkeypatch: Any) -> None:
    """The rule of a mask is tried, whatever the configuration calls it."""
    from transformers import masking_utils
    from transformers.models.olmo2 import modeling_olmo2

    def chunked(*args: Any, **kwargs: Any) -> Any:
        def same_chunk(batch: Any, head: Any, query: Any, key: Any) -> Any:
            return query // 8 == key // 8

        return masking_utils.create_causal_mask(*args, **kwargs, and_mask_function=same_chunk)

    monkeypatch.setattr(modeling_olmo2, "create_causal_mask", chunked)
    values = {**SMALL, "vocab_size": 17}
    config = describe("Olmo2ForCausalLM", "Olmo2", values, tmp_path)
    with pytest.raises(LoadError, match="neither causal nor a sliding window"):
        build(config, Mesh(), torch.float32, "meta")


def test_a_model_that_counts_positions_by_itself(tmp_path: Path, monkeypatch: Any) -> None:
    from transformers import Olmo2Model

    plain = Olmo2Model.forward

    def counting(self: Any, input_ids: Any, **kwargs: Any) -> Any:
        return plain(self, input_ids, **{**kwargs, "position_ids": None})

    monkeypatch.setattr(Olmo2Model, "forward", counting)
    config = describe("Olmo2ForCausalLM", "Olmo2", {**SMALL, "vocab_size": 19}, tmp_path)
    with pytest.raises(LoadError, match="takes no position_ids"):
        build(config, Mesh(), torch.float32, "meta")


def test_ranks_and_stages_are_refused(tmp_path: Path) -> None:
    config = describe("Olmo2ForCausalLM", "Olmo2", SMALL, tmp_path)
    words = r"Olmo2ForCausalLM.*not cut into ranks.*replicas"
    with pytest.raises(ConfigError, match=words) as error:
        build(config, team(2)[1], torch.float32, "meta")
    assert error.value.key == "tensor_parallel_size"
    with pytest.raises(ConfigError, match="Olmo2ForCausalLM") as error:
        build(config, Mesh(), torch.float32, "meta", stage=Stage(range(1), last=False))
    assert error.value.key == "pipeline_parallel_size"


def test_only_native(tmp_path: Path) -> None:
    config = describe("Olmo2ForCausalLM", "Olmo2", SMALL, tmp_path)
    with pytest.raises(LoadError, match=r"'Olmo2ForCausalLM' is not native.*auto"):
        build(config, Mesh(), torch.float32, "meta", impl="shoal")
    build(config, Mesh(), torch.float32, "meta", impl="transformers")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"hidden_act": "gelo"}, "hidden_act 'gelo' is not known.*'gelu'"),
        ({"rope_parameters": {"rope_type": "spiral", "rope_theta": 1e4}}, "spiral"),
        ({"layer_types": ["full_attention", "spiral_attention"]}, "spiral_attention"),
        ({"hidden_size": "wide"}, "hidden_size"),
    ],
)
def test_values_that_transformers_does_not_know(
    values: dict[str, Any], words: str, tmp_path: Path
) -> None:
    describe("Olmo3ForCausalLM", "Olmo3", SMALL, tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    with pytest.raises(LoadError, match=words) as error:
        build(read_config(tmp_path), Mesh(), torch.float32, "meta")
    assert str(path) in str(error.value)


def test_sizing_takes_no_memory(tmp_path: Path) -> None:
    """A model of 100 GB and more is described without any of it."""
    values = {**SMALL, "hidden_size": 8192, "intermediate_size": 32768, "num_hidden_layers": 48}
    config = describe("Olmo2ForCausalLM", "Olmo2", {**values, "vocab_size": 100_000}, tmp_path)
    model = build(config, Mesh(), torch.float32, "meta")
    assert isinstance(model, torch.nn.Module)
    assert sum(weight.nbytes for weight in model.parameters()) > 100e9
    assert all(weight.is_meta for weight in model.parameters())
