"""Qwen2 and Qwen2.5: Yang et al., 2024. Biases on queries, keys and values; some layers may see
a sliding window only."""

from __future__ import annotations

from torch import Tensor, nn

from ...plan import CacheSpec
from ..config import ModelConfig
from ..decoder import Angles, DecoderLM, PreNormLayer
from ..layers import GatedMLP, RowLinear, qkv_linear
from ..mesh import Mesh, Stage
from ..pages import Pages


class Attention(nn.Module):
    """Grouped-query attention, over all keys or the last `window`."""

    def __init__(self, config: ModelConfig, mesh: Mesh, window: int | None) -> None:
        super().__init__()
        self.size = config.head_size
        self.scale = self.size**-0.5
        self.qkv, heads = qkv_linear(config, mesh, bias=True)
        self.o_proj = RowLinear(
            mesh, config.num_attention_heads, self.size, config.hidden_size, unit="attention heads"
        )
        self.spec = CacheSpec(heads.kv, self.size, window)

    def forward(self, x: Tensor, angles: Angles, pages: Pages) -> Tensor:
        heads = self.qkv(x).view(len(x), -1, self.size)
        out: Tensor = self.o_proj(pages.turn_and_attend(heads, angles, scale=self.scale))
        return out


def qwen2(
    config: ModelConfig, mesh: Mesh, *, stage: Stage | None = None, max_len: int | None = None
) -> DecoderLM:
    def layer(index: int) -> PreNormLayer:
        attention = Attention(config, mesh, config.window(index))
        mlp = GatedMLP(config, mesh)
        return PreNormLayer(config, attention, mlp, attention.spec)

    return DecoderLM(config, mesh, layer, stage=stage, max_len=max_len)
