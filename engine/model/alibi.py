"""Attention with linear biases: each head fades keys at its own slope (Press et al., 2022)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .config import ModelConfig
from .mesh import Mesh
from .shard import column_share


class Alibi(nn.Module):
    """What this rank's heads add to the scores of the keys at every position, for all layers.

    Keys count from the start of a text, so a later key stands higher; softmax sees differences
    alone. Slope, position and their product are rounded to bfloat16, and scaled like the scores:
    so Falcon's checkpoints were trained.
    """

    table: Tensor

    def __init__(self, config: ModelConfig, mesh: Mesh) -> None:
        super().__init__()
        share = column_share(config.num_attention_heads, mesh, "attention heads")
        steep = slopes(config.num_attention_heads).bfloat16().chunk(share.of)[share.part]
        table = steep[:, None] * torch.arange(config.max_length)
        scaled = table.float() / math.sqrt(config.head_size)
        self.register_buffer("table", scaled, persistent=False)


def slopes(num_heads: int) -> Tensor:
    """The heads' slopes: a geometric series that ends at 2**-8.

    Where the heads are no power of two, the series of the next lower power, and then every other
    one of the series of twice as many.
    """
    whole = 2 ** math.floor(math.log2(num_heads))
    between = _series(2 * whole)[::2]
    return torch.cat([_series(whole), between[: num_heads - whole]])


def _series(num_heads: int) -> Tensor:
    ratio = torch.tensor(2 ** (-8 / num_heads), dtype=torch.float32)
    return torch.pow(ratio, torch.arange(1, num_heads + 1, dtype=torch.int32))
