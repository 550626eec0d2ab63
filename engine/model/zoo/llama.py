"""Llama 1 to 3.x: Touvron et al., 2023; The Llama 3 Herd of Models, 2024."""

from __future__ import annotations

from torch import Tensor, nn

from ....kernels import ops
from ...plan import CacheSpec
from ..batch import ModelInput
from ..config import ModelConfig
from ..layers import ColumnLinear, Embedding, GatedMLP, RMSNorm, RowLinear
from ..mesh import Mesh
from ..pages import Pages, layer_pages
from ..rope import Rotary

Angles = tuple[Tensor, Tensor]


class Attention(nn.Module):
    """Grouped-query attention: a key-value head serves several query heads."""

    def __init__(self, config: ModelConfig, mesh: Mesh) -> None:
        super().__init__()
        size, num_heads, num_kv_heads = (
            config.head_size,
            config.num_attention_heads,
            config.num_kv_heads,
        )
        bias = config.get("attention_bias", False)
        parts = {
            "q_proj": (num_heads, size),
            "k_proj": (num_kv_heads, size),
            "v_proj": (num_kv_heads, size),
        }
        self.qkv = ColumnLinear(mesh, config.hidden_size, parts, bias=bias, unit="heads")
        self.o_proj = RowLinear(
            mesh, num_heads, size, config.hidden_size, bias=bias, unit="attention heads"
        )
        self.heads = [share.units for share in self.qkv.shares]
        self.size = size
        self.scale = size**-0.5
        self.spec = CacheSpec(self.heads[1], size)

    def forward(self, x: Tensor, angles: Angles, pages: Pages) -> Tensor:
        heads = self.qkv(x).view(len(x), -1, self.size)
        q, k, v = heads.split(self.heads, dim=1)
        ops.rope(heads[:, : self.heads[0] + self.heads[1]], *angles)
        out: Tensor = self.o_proj(pages.attend(q, k, v, scale=self.scale))
        return out


class Layer(nn.Module):
    """Attention, then feed-forward, each behind a norm and added to the residual stream."""

    def __init__(self, config: ModelConfig, mesh: Mesh) -> None:
        super().__init__()
        hidden_size, eps = config.hidden_size, config.get("rms_norm_eps", 1e-6)
        self.input_layernorm = RMSNorm(hidden_size, eps)
        self.self_attn = Attention(config, mesh)
        self.post_attention_layernorm = RMSNorm(hidden_size, eps)
        self.mlp = GatedMLP(
            mesh, hidden_size, config.intermediate_size, bias=config.get("mlp_bias", False)
        )

    def forward(self, x: Tensor | None, residual: Tensor, angles: Angles, pages: Pages) -> Tensor:
        x = self.self_attn(self.input_layernorm.add(x, residual), angles, pages)
        out: Tensor = self.mlp(self.post_attention_layernorm.add(x, residual))
        return out


class Decoder(nn.Module):
    """Embedding, layers, last norm; `layers` picks the layers that are built."""

    def __init__(self, config: ModelConfig, mesh: Mesh, layers: range, max_len: int | None) -> None:
        super().__init__()
        self.embed_tokens = Embedding(mesh, config.vocab_size, config.hidden_size)
        stack = [Layer(config, mesh) for _ in layers]
        self.layers = nn.ModuleDict(dict(zip(map(str, layers), stack, strict=True)))
        self.cache_specs = [layer.self_attn.spec for layer in stack]
        self.norm = RMSNorm(config.hidden_size, config.get("rms_norm_eps", 1e-6))
        self.rotary = Rotary(config, max_len)

    def forward(self, batch: ModelInput) -> Tensor:
        residual = self.embed_tokens(batch.tokens)
        angles = self.rotary(batch.positions, residual.dtype)
        pages_of = layer_pages(batch, self.cache_specs)
        x = None
        for layer, pages in zip(self.layers.values(), pages_of, strict=True):
            x = layer(x, residual, angles, pages)
        return self.norm.add(x, residual)


class LlamaForCausalLM(nn.Module):
    """The decoder and its head, which may be the embedding's own table."""

    def __init__(
        self,
        config: ModelConfig,
        mesh: Mesh,
        *,
        layers: range | None = None,
        max_len: int | None = None,
    ) -> None:
        super().__init__()
        layers = range(config.num_hidden_layers) if layers is None else layers
        self.model = Decoder(config, mesh, layers, max_len)
        tied = config.get("tie_word_embeddings", False)
        self.lm_head = (
            self.model.embed_tokens
            if tied
            else Embedding(mesh, config.vocab_size, config.hidden_size)
        )
        self.cache_specs = self.model.cache_specs

    def forward(self, batch: ModelInput) -> Tensor:
        hidden: Tensor = self.model(batch)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        return self.lm_head.logits(hidden)
