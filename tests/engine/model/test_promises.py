"""What a config.json promises and is not built: an error with the value, the file, the way out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from shoal.engine.config import from_keys
from shoal.engine.errors import ConfigError, LoadError
from shoal.engine.model.config import read_config
from shoal.engine.model.load import load
from shoal.engine.model.mesh import Mesh
from shoal.engine.model.zoo.registry import build
from transformers import LlamaConfig, Olmo2Config

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 101,
    "max_position_embeddings": 128,
}


def refusal(folder: Path, architecture: str | None = None, **values: Any) -> str:
    """What is said of a Llama with these values in its config.json."""
    LlamaConfig(**SMALL, architectures=["LlamaForCausalLM"]).save_pretrained(folder)
    path = folder / "config.json"
    if architecture:
        values["architectures"] = [architecture]
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    with pytest.raises(LoadError) as error:
        build(read_config(folder), Mesh(), torch.float32, "meta")
    assert str(path) in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("method", ["gptq", "awq", "fp8", "compressed-tensors", "bitsandbytes"])
def test_quantized_weights(method: str, tmp_path: Path) -> None:
    said = refusal(tmp_path, quantization_config={"quant_method": method, "bits": 4})
    assert f"quantization_config: its weights are quantized ({method})" in said
    assert "use the checkpoint's bfloat16 or float32 form" in said
    said = refusal(tmp_path, "Olmo2ForCausalLM", quantization_config={"quant_method": method})
    assert f"({method})" in said


def test_quantization_by_flag() -> None:
    with pytest.raises(ConfigError, match=r"quantization='awq'.*not built yet") as error:
        from_keys({"model": "m", "quantization": "awq"})
    assert error.value.key == "quantization"


def test_compressed_tensors_of_old(tmp_path: Path) -> None:
    assert "(compression)" in refusal(tmp_path, compression_config={"format": "pack-quantized"})


@pytest.mark.parametrize("key", ["vision_config", "audio_config", "speech_config"])
def test_more_than_text(key: str, tmp_path: Path) -> None:
    said = refusal(tmp_path, "Qwen2VLForConditionalGeneration", **{key: {"depth": 2}})
    assert f"{key}: Qwen2VLForConditionalGeneration takes images or sound" in said
    assert "only text models are served" in said


def test_more_than_text_by_its_name_alone(tmp_path: Path) -> None:
    said = refusal(tmp_path, "Gemma3ForConditionalGeneration", model_type="gemma3")
    assert "Gemma3ForConditionalGeneration takes images or sound (vision_config)" in said


def test_encoders(tmp_path: Path) -> None:
    said = refusal(tmp_path, "T5ForConditionalGeneration", is_encoder_decoder=True)
    assert "T5ForConditionalGeneration reads with an encoder and cross-attention" in said
    said = refusal(tmp_path, "LlamaForSequenceClassification")
    assert "LlamaForSequenceClassification" in said
    assert "only causal language models are served" in said


@pytest.mark.parametrize(
    ("named", "file"),
    [
        ("modeling_shiny.ShinyForCausalLM", "modeling_shiny.py would"),
        ("them/shiny--modeling_shiny.ShinyForCausalLM", "modeling_shiny.py of them/shiny would"),
        ("code.modeling_shiny.ShinyForCausalLM", "code/modeling_shiny.py would"),
    ],
)
def test_code_of_a_repository_is_named_and_never_run(named: str, file: str, tmp_path: Path) -> None:
    (tmp_path / "modeling_shiny.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    said = refusal(tmp_path, "ShinyForCausalLM", auto_map={"AutoModelForCausalLM": named})
    assert "'ShinyForCausalLM' is known only to code of its repository" in said
    assert f": {file} have to run, and trust_remote_code is off" in said
    assert not (tmp_path / "ran").exists()


def test_code_beside_a_known_architecture_does_not_matter(tmp_path: Path) -> None:
    named = {"AutoModelForCausalLM": "modeling_shiny.ShinyForCausalLM"}
    for config in (
        LlamaConfig(**SMALL, architectures=["LlamaForCausalLM"], auto_map=named),
        Olmo2Config(**SMALL, architectures=["Olmo2ForCausalLM"], auto_map=named),
    ):
        config.save_pretrained(tmp_path)
        build(read_config(tmp_path), Mesh(), torch.float32, "meta")


def test_unknown_architectures(tmp_path: Path) -> None:
    said = refusal(tmp_path, "Qwen3ForCasualLM")
    assert "'Qwen3ForCasualLM' is neither native here (FalconForCausalLM, " in said
    assert "nor known to transformers 5." in said
    assert "the nearest name that is known is Qwen3ForCausalLM" in said
    assert "nearest" not in refusal(tmp_path, "Zzz")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not built here for LlamaForCausalLM"),
        ({"rope_parameters": {"rope_type": "mrope"}}, "rope of type 'mrope' is not known"),
        ({"rope_scaling": {"type": "ntk"}, "rope_parameters": None}, "type 'ntk' is not known"),
        ({"layer_types": ["full_attention", "spiral"]}, "layer_types names 'spiral'"),
    ],
)
def test_values_that_no_native_code_knows(
    values: dict[str, Any], words: str, tmp_path: Path
) -> None:
    said = refusal(tmp_path, **values)
    assert words in said
    assert "model_impl: transformers may know" in said


def test_layers_that_guess_further_tokens(tmp_path: Path, random_model: Any) -> None:
    """They are named where they would be left over, and let be where the model's code says so."""
    random_model(LlamaConfig(**SMALL), tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_nextn_predict_layers": 1}))
    load(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    extra = {"model.layers.2.eh_proj.weight": torch.zeros(32, 64)}
    save_file({**weights, **extra}, tmp_path / "model.safetensors")
    with pytest.raises(LoadError, match=r"layers\.2\.eh_proj.*\(MTP\).*save_pretrained") as error:
        load(tmp_path)
    assert f"{path} has num_nextn_predict_layers=1" in str(error.value)
