"""What a configuration's checkpoint tells before anything of it is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from shoal.engine.checkpoint import check_ranks, checkpoint_facts
from shoal.engine.config import from_keys
from shoal.engine.errors import ConfigError
from shoal.engine.model.families import NATIVE
from shoal.engine.model.zoo.registry import ARCHITECTURES


def check(folder: Path, **keys: Any) -> None:
    config = from_keys({"model": str(folder)} | keys)
    check_ranks(config, checkpoint_facts(config))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    values = {
        "architectures": ["Qwen3ForCausalLM"],
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "vocab_size": 101,
        "max_position_embeddings": 128,
    }
    tmp_path.joinpath("config.json").write_text(json.dumps(values))
    return tmp_path


def test_ranks_that_cannot_share_a_model_are_found_without_its_weights(folder: Path) -> None:
    check(folder, tensor_parallel_size=4, pipeline_parallel_size=2)
    with pytest.raises(ConfigError, match="tensor_parallel_size=3 cannot cut the model's 8 q_proj"):
        check(folder, tensor_parallel_size=3)
    with pytest.raises(ConfigError, match="=5 is more than the model's 4 layers"):
        check(folder, pipeline_parallel_size=5)
    with pytest.raises(ConfigError, match="pipeline_layer_partition"):
        check(folder, pipeline_parallel_size=2, pipeline_layer_partition="3,2")


def test_of_what_runs_in_other_code_nothing_is_said(folder: Path) -> None:
    check(folder, tensor_parallel_size=3, model_impl="transformers")


def test_who_is_cut_into_ranks_is_who_is_built_here() -> None:
    assert ARCHITECTURES.keys() == NATIVE
