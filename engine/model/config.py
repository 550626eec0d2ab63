"""What a checkpoint says about itself in config.json and generation_config.json. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import LoadError
from .families import NATIVE, canonical

SAMPLING_KEYS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "max_new_tokens": "max_tokens",
}
"""What generation_config.json may set, and the name in SamplingParams."""

STRETCHED = ("linear", "dynamic")
"""Rope types by which `max_position_embeddings` is the length before scaling."""


class ModelConfig:
    """config.json; its values are attributes, and one that is missing or null raises LoadError.

    Values are in one spelling, that of `families.canonical`. `get(name, default)` is for values
    that a checkpoint may leave out. `text` is the file as it is.
    """

    def __init__(self, path: Path, text: str, values: Mapping[str, Any]) -> None:
        self.path = path
        self.text = text
        self.values = values

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name in ("path", "text", "values"):
            raise AttributeError(name)
        value = self.values.get(name)
        if value is None:
            raise LoadError(f"{self.path} has no {name!r}, which this architecture needs")
        return value

    def get(self, name: str, default: Any = None) -> Any:
        """The value, or the default where it is missing or null."""
        value = self.values.get(name)
        return default if value is None else value

    @property
    def architecture(self) -> str:
        """The first of `architectures`. Raises LoadError where there is none."""
        return str(self.architectures[0])

    @property
    def head_size(self) -> int:
        """Columns of an attention head."""
        return int(self.get("head_dim") or self.hidden_size // self.num_attention_heads)

    @property
    def num_kv_heads(self) -> int:
        """Key-value heads; as many as query heads unless they are grouped."""
        return int(self.get("num_key_value_heads") or self.num_attention_heads)

    def window(self, layer: int) -> int | None:
        """How many tokens layer `layer` sees, where it sees a sliding window.

        `layer_types` says which layers do, else all from `max_window_layers` on; both count only
        with `use_sliding_window`.
        """
        if not self.get("use_sliding_window", False):
            return None
        kinds = self.get("layer_types")
        sliding = (
            layer >= self.get("max_window_layers", 28)
            if kinds is None
            else kinds[layer] == "sliding_attention"
        )
        return int(self.sliding_window) if sliding else None

    @property
    def rope(self) -> dict[str, Any]:
        """The rope's parameters with `rope_type` and `rope_theta` always there.

        Both spellings are understood: `rope_parameters`, and `rope_scaling` beside `rope_theta`.
        Where a file has both, `rope_scaling` was added by hand and wins.
        """
        own, added = self.get("rope_parameters") or {}, self.get("rope_scaling") or {}
        rope = {**own, **added}
        if any(isinstance(value, Mapping) for value in rope.values()):
            raise LoadError(f"{self.path}: a rope that differs by layer is not built yet")
        named = (part.get("rope_type") or part.get("type") for part in (added, own))
        kind = next(filter(None, named), "default")
        rope["rope_type"] = "longrope" if kind == "su" else kind
        rope["rope_theta"] = float(rope.get("rope_theta") or self.get("rope_theta") or 10_000.0)
        if rope.get("partial_rotary_factor") is None:
            rope["partial_rotary_factor"] = self.get("partial_rotary_factor", 1.0)
        original = self.get("original_max_position_embeddings") or rope.get(
            "original_max_position_embeddings"
        )
        rope["original_max_position_embeddings"] = original or self.max_position_embeddings
        return rope

    @property
    def max_length(self) -> int:
        """Tokens that the model was made for, stretched by its rope.

        A rope that differs by layer is stretched already.
        """
        length = int(self.max_position_embeddings)
        stretch = self.get("rope_parameters") or self.get("rope_scaling") or {}
        by_layer = any(isinstance(value, Mapping) for value in stretch.values())
        if by_layer or not stretch or self.get("rope_local_base_freq"):
            return length
        rope = self.rope
        factor = rope.get("factor")
        if factor is None:
            return length
        if rope["rope_type"] in STRETCHED:
            return int(length * factor)
        if rope["rope_type"] == "yarn":
            return max(length, int(rope["original_max_position_embeddings"] * factor))
        return length

    @property
    def dtype(self) -> str:
        """The dtype that the checkpoint states; float32 where it states none."""
        return str(self.get("dtype") or self.get("torch_dtype") or "float32").removeprefix("torch.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What an engine and a gateway need to know of a model before it is loaded.

    `sampling`: defaults of generation_config.json under SamplingParams' names. `dtype` is the
    checkpoint's own. `num_heads` and `num_layers` are those of a native model, else 0.
    """

    architecture: str
    max_model_len: int
    vocab_size: int
    eos_token_ids: frozenset[int]
    sampling: Mapping[str, Any]
    dtype: str
    num_heads: int
    num_layers: int


def read_config(folder: Path) -> ModelConfig:
    """config.json of a checkpoint. Raises LoadError where it is missing or not JSON."""
    path = folder / "config.json"
    if not path.is_file():
        found = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
        raise LoadError(
            f"{folder} has no config.json (it holds {found}); give the folder of a checkpoint in "
            f"Hugging Face layout"
        )
    text = path.read_text(encoding="utf-8")
    return ModelConfig(path, text, canonical(_parse(path, text)))


def model_facts(folder: Path, *, generation_config: Path | bool = True) -> ModelFacts:
    """Facts of a checkpoint folder.

    `generation_config` False leaves its sampling defaults out; another folder's are taken instead.
    Raises LoadError.
    """
    config = read_config(folder)
    generation = _generation(folder)
    defaults = generation if generation_config else {}
    if isinstance(generation_config, Path):
        defaults = _generation(generation_config)
        if not defaults:
            raise LoadError(f"{generation_config} has no generation_config.json")
    native = config.architecture in NATIVE
    return ModelFacts(
        architecture=config.architecture,
        max_model_len=config.max_length,
        vocab_size=int(config.vocab_size),
        eos_token_ids=_ids(config.get("eos_token_id")) | _ids(generation.get("eos_token_id")),
        sampling={
            ours: defaults[theirs]
            for theirs, ours in SAMPLING_KEYS.items()
            if defaults.get(theirs) is not None
        },
        dtype=config.dtype,
        num_heads=int(config.get("num_attention_heads", 0)) if native else 0,
        num_layers=int(config.get("num_hidden_layers", 0)) if native else 0,
    )


def _generation(folder: Path) -> dict[str, Any]:
    path = folder / "generation_config.json"
    return _parse(path, path.read_text(encoding="utf-8")) if path.is_file() else {}


def _ids(value: int | list[int] | None) -> frozenset[int]:
    if value is None:
        return frozenset()
    return frozenset([value] if isinstance(value, int) else value)


def _parse(path: Path, text: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise LoadError(f"{path} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise LoadError(f"{path} holds no JSON object")
    return values
