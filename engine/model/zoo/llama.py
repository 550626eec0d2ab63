"""Llama 1 to 3.x: Touvron et al., 2023; The Llama 3 Herd of Models, 2024."""

from __future__ import annotations

from torch import Tensor, nn

from ...plan import CacheSpec
from ..config import ModelConfig
from ..decoder import Angles, DecoderLM, PreNormLayer
from ..layers import GatedMLP, RowLinear, qkv_linear
from ..mesh import Mesh, Stage
from ..pages import Pages


class Attention(nn.Module):
    """Grouped-query attention: a key-value head serves several query heads."""

    def __init__(self, config: ModelConfig, mesh: Mesh) -> None:
        super().__init__()
        bias = config.get("attention_bias", False)
        self.size = config.head_size
        self.scale = self.size**-0.5
        self.qkv, heads = qkv_linear(config, mesh, bias=bias)
        self.o_proj = RowLinear(
            mesh,
            config.num_attention_heads,
            self.size,
            config.hidden_size,
            bias=bias,
            unit="attention heads",
        )
        self.spec = CacheSpec(heads.kv, self.size)

    def forward(self, x: Tensor, angles: Angles, pages: Pages) -> Tensor:
        heads = self.qkv(x).view(len(x), -1, self.size)
        out: Tensor = self.o_proj(pages.turn_and_attend(heads, angles, scale=self.scale))
        return out


def llama(
    config: ModelConfig, mesh: Mesh, *, stage: Stage | None = None, max_len: int | None = None
) -> DecoderLM:
    def layer(index: int) -> PreNormLayer:
        attention = Attention(config, mesh)
        mlp = GatedMLP(config, mesh, bias=config.get("mlp_bias", False))
        return PreNormLayer(config, attention, mlp, attention.spec)

    return DecoderLM(config, mesh, layer, stage=stage, max_len=max_len)
