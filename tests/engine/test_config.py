"""What an engine's configuration refuses, whoever makes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from shoal.engine.config import EngineConfig, from_keys
from shoal.engine.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("gpu_memory_utilization", "0.9", "must be a number"),
        ("gpu_memory_utilization", 1.5, "at most 1"),
        ("enable_prefix_caching", "no", "must be true or false"),
        ("max_num_seqs", True, "must be an integer"),
        ("max_num_seqs", 0, "at least 1"),
        ("threads", 40_000, "at most 1,024"),
        ("max_model_len", "32k", "must be an integer"),
        ("seed", None, "must be an integer"),
        ("dtype", None, "must be text"),
        ("chat_template", 5, "must be text"),
        ("generation_config", "/a/folder", "must be one of auto, vllm, shoal, a folder"),
    ],
)
def test_a_wrong_value_is_named(name: str, value: Any, message: str) -> None:
    with pytest.raises(
        ConfigError, match=f"^{name} must be.*{message.removeprefix('must be ')}"
    ) as refused:
        EngineConfig(**{name: value})
    assert refused.value.key == name


def test_a_path_is_text_and_none_the_default() -> None:
    config = from_keys({"model": Path("a/b"), "tokenizer": None, "seed": None})
    assert config == EngineConfig(model="a/b")


def test_keys_of_vllm_are_taken_or_refused_in_words() -> None:
    assert from_keys({"swap_space": 4, "kv_cache_dtype": "auto", "cpu_offload_gb": 0}) == from_keys(
        {}
    )
    with pytest.raises(ConfigError, match=r"several copies .* `shoal serve --replicas N`"):
        from_keys({"data_parallel_size": 2})
    with pytest.raises(ConfigError, match="did you mean 'max_model_len'"):
        from_keys({"max_modle_len": 2})


def test_where_the_tokenizer_comes_from() -> None:
    def place(**keys: str) -> tuple[str, str | None]:
        return EngineConfig(model="a/b", **keys).tokenizer_place

    assert place() == ("a/b", None)
    assert place(revision="v2") == ("a/b", "v2")
    assert place(revision="v2", tokenizer_revision="v1") == ("a/b", "v1")
    assert place(revision="v2", tokenizer="c/d") == ("c/d", None)
    assert place(revision="v2", tokenizer="c/d", tokenizer_revision="v1") == ("c/d", "v1")
