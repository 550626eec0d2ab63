"""Mistral 7B and its like: Jiang et al., 2023. A Llama whose layers all see a sliding window only,
where the configuration names one."""

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
        self.qkv, heads = qkv_linear(config, mesh, bias=False)
        self.o_proj = RowLinear(
            mesh, config.num_attention_heads, self.size, config.hidden_size, unit="attention heads"
        )
        self.spec = CacheSpec(heads.kv, self.size, window)

    def forward(self, x: Tensor, angles: Angles, pages: Pages) -> Tensor:
        heads = self.qkv(x).view(len(x), -1, self.size)
        out: Tensor = self.o_proj(pages.turn_and_attend(heads, angles, scale=self.scale))
        return out


def mistral(
    config: ModelConfig, mesh: Mesh, *, stage: Stage | None = None, max_len: int | None = None
) -> DecoderLM:
    def layer(index: int) -> PreNormLayer:
        attention = Attention(config, mesh, config.get("sliding_window"))
        return PreNormLayer(config, attention, GatedMLP(config, mesh), attention.spec)

    return DecoderLM(config, mesh, layer, stage=stage, max_len=max_len)
