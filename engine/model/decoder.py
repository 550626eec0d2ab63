"""The frame that most models share: embedding, a stack of layers, a last norm, a head.

A model of this frame brings its attention; one that differs in the frame writes its own.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from ..plan import CacheSpec
from .batch import ModelInput
from .config import ModelConfig
from .layers import Embedding, GatedMLP, RMSNorm, output_table
from .mesh import Mesh
from .pages import Pages, layer_pages
from .rope import Rotary

Angles = tuple[Tensor, Tensor]


class PreNormLayer(nn.Module):
    """Attention, then feed-forward, each behind a norm and added to the residual stream.

    `attention` is called with (x, angles, pages); `spec` is what it caches.
    """

    def __init__(
        self, config: ModelConfig, attention: nn.Module, mlp: GatedMLP, spec: CacheSpec
    ) -> None:
        super().__init__()
        self.spec = spec
        self.input_layernorm = RMSNorm(config.hidden_size, config.get("rms_norm_eps", 1e-6))
        self.self_attn = attention
        self.post_attention_layernorm = RMSNorm(
            config.hidden_size, config.get("rms_norm_eps", 1e-6)
        )
        self.mlp = mlp

    def forward(self, x: Tensor | None, residual: Tensor, angles: Angles, pages: Pages) -> Tensor:
        """x is what the layer before adds to the residual, None in the first; returns the next."""
        x = self.self_attn(self.input_layernorm.add(x, residual), angles, pages)
        out: Tensor = self.mlp(self.post_attention_layernorm.add(x, residual))
        return out


class Decoder(nn.Module):
    """Tokens to hidden states; `layers` are the indices of those that are built."""

    def __init__(
        self,
        config: ModelConfig,
        mesh: Mesh,
        layer: Callable[[int], PreNormLayer],
        layers: range,
        max_len: int | None,
    ) -> None:
        super().__init__()
        self.embed_tokens = Embedding(mesh, config.vocab_size, config.hidden_size)
        stack = {str(index): layer(index) for index in layers}
        self.layers = nn.ModuleDict(stack)
        self.cache_specs = [built.spec for built in stack.values()]
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


class DecoderLM(nn.Module):
    """A decoder and its head, which may be the embedding's own table.

    `layer(index)` makes a layer; `layers` picks those that are built, all by default. `max_len` is
    the longest text that the engine takes, where it is not the model's own.
    """

    def __init__(
        self,
        config: ModelConfig,
        mesh: Mesh,
        layer: Callable[[int], PreNormLayer],
        *,
        layers: range | None = None,
        max_len: int | None = None,
    ) -> None:
        super().__init__()
        layers = range(config.num_hidden_layers) if layers is None else layers
        self.model = Decoder(config, mesh, layer, layers, max_len)
        self.lm_head = output_table(config, mesh, self.model.embed_tokens)
        self.cache_specs = self.model.cache_specs

    def forward(self, batch: ModelInput) -> Tensor:
        hidden: Tensor = self.model(batch)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        return self.lm_head.logits(hidden)
