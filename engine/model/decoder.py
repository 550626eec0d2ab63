"""The frame that most models share: embedding, a stack of layers, a last norm, a head.

A model of this frame brings its attention; one that differs in the frame writes its own.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from ...kernels import ops
from ..plan import CacheSpec
from .batch import ModelInput
from .config import ModelConfig
from .layers import Embedding, GatedMLP, RMSNorm, holds_embedding, output_table
from .mesh import Mesh, Stage
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
    """Tokens to hidden states, or the part of that way which `stage` is."""

    def __init__(
        self,
        config: ModelConfig,
        mesh: Mesh,
        layer: Callable[[int], PreNormLayer],
        stage: Stage,
        max_len: int | None,
    ) -> None:
        super().__init__()
        if holds_embedding(config, stage):
            self.embed_tokens = Embedding(mesh, config.vocab_size, config.hidden_size)
        stack = {str(index): layer(index) for index in stage.layers}
        self.layers = nn.ModuleDict(stack)
        self.cache_specs = [built.spec for built in stack.values()]
        if stage.last:
            self.norm = RMSNorm(config.hidden_size, config.get("rms_norm_eps", 1e-6))
        self.rotary = Rotary(config, max_len)
        self.stage = stage

    def forward(self, batch: ModelInput, hidden: Tensor | None) -> Tensor:
        residual = self.embed_tokens(batch.tokens) if hidden is None else hidden
        angles = self.rotary(batch.positions, residual.dtype)
        pages_of = layer_pages(batch, self.cache_specs)
        x = None
        for layer, pages in zip(self.layers.values(), pages_of, strict=True):
            x = layer(x, residual, angles, pages)
        if self.stage.last:
            return self.norm.add(x, residual)
        assert x is not None, "a stage has layers"
        ops.add(x, residual)
        return residual


class DecoderLM(nn.Module):
    """A decoder and its head, which may be the embedding's own table.

    `layer(index)` makes a layer; `stage` is what of the model is built, all by default. `max_len`
    is the longest text that the engine takes, where it is not the model's own.
    """

    def __init__(
        self,
        config: ModelConfig,
        mesh: Mesh,
        layer: Callable[[int], PreNormLayer],
        *,
        stage: Stage | None = None,
        max_len: int | None = None,
    ) -> None:
        super().__init__()
        stage = stage or Stage(range(config.num_hidden_layers))
        self.model = Decoder(config, mesh, layer, stage, max_len)
        if stage.last:
            self.lm_head = output_table(config, mesh, getattr(self.model, "embed_tokens", None))
        self.cache_specs = self.model.cache_specs

    def forward(self, batch: ModelInput, hidden: Tensor | None = None) -> Tensor:
        found: Tensor = self.model(batch, hidden)
        return found

    def logits(self, hidden: Tensor) -> Tensor:
        return self.lm_head.logits(hidden)

    def greatest(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        return self.lm_head.greatest(hidden)
