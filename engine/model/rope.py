"""Rotary embeddings: the frequencies of each kind of context extension.

Frequencies are fixed once an engine. Kinds that depend on how long a text is (dynamic, longrope)
take the engine's longest text for it, so that a token's angle never depends on its company.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...kernels import ops
from ..errors import LoadError
from .config import ModelConfig

Rope = Mapping[str, Any]


class Rotary(nn.Module):
    """The angles of positions, shared by all layers of a step.

    `max_len` is the longest text that the engine takes, where it is not the model's own.
    """

    inv_freq: Tensor

    def __init__(self, config: ModelConfig, max_len: int | None = None) -> None:
        super().__init__()
        rope = config.rope
        kind = rope["rope_type"]
        if kind not in KINDS:
            raise LoadError(
                f"{config.path}: rope of type {kind!r} is not known; known are {', '.join(KINDS)}; "
                f"model_impl: transformers may know others"
            )
        size = int(config.head_size * rope["partial_rotary_factor"])
        try:
            inv_freq = KINDS[kind](config, rope, size, max_len or config.max_length)
        except KeyError as error:
            raise LoadError(f"{config.path}: rope of type {kind!r} needs {error}") from error
        self.register_buffer("inv_freq", inv_freq, persistent=False)
        self.scale = attention_scale(config, rope)

    def forward(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return ops.rope_angles(positions, self.inv_freq, self.scale, dtype)


def attention_scale(config: ModelConfig, rope: Rope) -> float:
    """The factor on cosines and sines by which yarn and longrope sharpen attention."""
    kind = rope["rope_type"]
    if kind not in ("yarn", "longrope"):
        return 1.0
    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])
    factor = _factor(config, rope)
    if kind == "longrope":
        original = rope["original_max_position_embeddings"]
        return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    mscale, all_dim = rope.get("mscale"), rope.get("mscale_all_dim")
    if mscale and all_dim:
        return _mscale(factor, mscale) / _mscale(factor, all_dim)
    return _mscale(factor, 1.0)


def _mscale(factor: float, weight: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def _factor(config: ModelConfig, rope: Rope) -> float:
    factor = rope.get("factor")
    original = rope["original_max_position_embeddings"]
    return float(config.max_position_embeddings / original if factor is None else factor)


def _powers(theta: float, size: int) -> Tensor:
    return torch.pow(theta, torch.arange(0, size, 2, dtype=torch.float32) / size)


def _default(config: ModelConfig, rope: Rope, size: int, max_len: int) -> Tensor:
    """Su et al., 2021."""
    return 1.0 / _powers(rope["rope_theta"], size)


def _linear(config: ModelConfig, rope: Rope, size: int, max_len: int) -> Tensor:
    """Position interpolation: Chen et al., 2023."""
    return _default(config, rope, size, max_len) / float(rope["factor"])


def _dynamic(config: ModelConfig, rope: Rope, size: int, max_len: int) -> Tensor:
    """NTK-aware scaling of the base, for the longest text."""
    trained, factor = config.max_position_embeddings, rope["factor"]
    stretch = factor * max(max_len, trained) / trained - (factor - 1)
    theta = rope["rope_theta"] * stretch ** (size / (size - 2))
    return 1.0 / _powers(float(theta), size)


def _llama3(config: ModelConfig, rope: Rope, size: int, max_len: int) -> Tensor:
    """Llama 3.1: long wavelengths are stretched, short ones kept, those between are blended."""
    inv_freq = _default(config, rope, size, max_len)
    original, factor = rope["original_max_position_embeddings"], rope["factor"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    turns = original * inv_freq / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    scaled: Tensor = inv_freq * ((1 - kept) / factor + kept)
    return scaled


def _yarn(config: ModelConfig, rope: Rope, size: int, max_len: int) -> Tensor:
    """YaRN: Peng et al., 2023. Interpolates what turns seldom, extrapolates what turns often."""
    theta, original = float(rope["rope_theta"]), rope["original_max_position_embeddings"]

    def dimension(turns: float) -> float:
        return size * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low = dimension(rope.get("beta_fast") or 32)
    high = dimension(rope.get("beta_slow") or 1)
    if rope.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    span = high - low if high != low else 0.001
    interpolated: Tensor = ((torch.arange(size // 2, dtype=torch.float32) - low) / span).clamp(0, 1)
    inv_freq = _default(config, rope, size, max_len)
    return inv_freq / _factor(config, rope) * interpolated + inv_freq * (1 - interpolated)


def _longrope(config: ModelConfig, rope: Rope, size: int, max_len: int) -> Tensor:
    """LongRoPE: Ding et al., 2024. A factor a frequency, one set for short and one for long."""
    long = max_len > rope["original_max_position_embeddings"]
    factors = torch.tensor(rope["long_factor" if long else "short_factor"], dtype=torch.float32)
    return 1.0 / (factors * _powers(rope["rope_theta"], size))


KINDS: Mapping[str, Callable[[ModelConfig, Rope, int, int], Tensor]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}
