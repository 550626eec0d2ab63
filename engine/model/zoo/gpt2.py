"""GPT-2: Radford et al., 2019. Positions are learned, every product has a bias, and the matrices of
the checkpoint lie input by output."""

from __future__ import annotations

from torch import Tensor, nn

from ....kernels import ops
from ...errors import LoadError
from ...plan import CacheSpec
from ..batch import ModelInput
from ..config import ModelConfig
from ..layers import (
    ACTIVATIONS,
    ColumnLinear,
    Embedding,
    LayerNorm,
    RowLinear,
    activation,
    holds_embedding,
    output_table,
    qkv_linear,
)
from ..mesh import Mesh, Stage
from ..pages import Pages, layer_pages


class Attention(nn.Module):
    """Multi-head attention; queries, keys and values lie side by side in one tensor."""

    def __init__(self, config: ModelConfig, mesh: Mesh, index: int) -> None:
        super().__init__()
        self.size = config.head_size
        self.scale = self.size**-0.5 if config.get("scale_attn_weights", True) else 1.0
        if config.get("scale_attn_by_inverse_layer_idx", False):
            self.scale /= index + 1
        self.c_attn, self.heads = qkv_linear(config, mesh, bias=True, fused=1, transposed=True)
        self.c_proj = RowLinear(
            mesh,
            config.num_attention_heads,
            self.size,
            config.hidden_size,
            bias=True,
            unit="attention heads",
            transposed=True,
        )
        self.spec = CacheSpec(self.heads.kv, self.size)

    def forward(self, x: Tensor, pages: Pages) -> Tensor:
        heads = self.c_attn(x).view(len(x), -1, self.size)
        q, k, v = heads.split((self.heads.q, self.heads.kv, self.heads.kv), dim=1)
        out: Tensor = self.c_proj(pages.attend(q, k, v, scale=self.scale))
        return out


class MLP(nn.Module):
    """The feed-forward block `c_proj(act(c_fc(x)))`."""

    def __init__(self, config: ModelConfig, mesh: Mesh) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        self.act = activation(config, ACTIVATIONS)
        self.c_fc = ColumnLinear(mesh, hidden, {"c_fc": (inner, 1)}, bias=True, transposed=True)
        self.c_proj = RowLinear(
            mesh, inner, 1, hidden, bias=True, unit="feed-forward columns", transposed=True
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.c_proj(self.act(self.c_fc(x)))
        return out


class Layer(nn.Module):
    """Attention, then feed-forward, each behind a norm and added to the residual stream."""

    def __init__(self, config: ModelConfig, mesh: Mesh, index: int) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(config.hidden_size, config.layer_norm_epsilon)
        self.attn = Attention(config, mesh, index)
        self.ln_2 = LayerNorm(config.hidden_size, config.layer_norm_epsilon)
        self.mlp = MLP(config, mesh)

    def forward(self, x: Tensor | None, residual: Tensor, pages: Pages) -> Tensor:
        """x is what the layer before adds to the residual, None in the first; returns the next."""
        x = self.attn(self.ln_1.add(x, residual), pages)
        out: Tensor = self.mlp(self.ln_2.add(x, residual))
        return out


class Transformer(nn.Module):
    """Tokens to hidden states, or the part of that way which `stage` is."""

    def __init__(self, config: ModelConfig, mesh: Mesh, stage: Stage) -> None:
        super().__init__()
        if holds_embedding(config, stage):
            self.wte = Embedding(mesh, config.vocab_size, config.hidden_size)
        if stage.first:
            # A small table, whole on every rank: a sum over ranks would cost more than it takes.
            self.wpe = Embedding(Mesh(), config.max_position_embeddings, config.hidden_size)
        stack = {str(index): Layer(config, mesh, index) for index in stage.layers}
        self.h = nn.ModuleDict(stack)
        self.cache_specs = [built.attn.spec for built in stack.values()]
        if stage.last:
            self.ln_f = LayerNorm(config.hidden_size, config.layer_norm_epsilon)
        self.stage = stage

    def forward(self, batch: ModelInput, hidden: Tensor | None) -> Tensor:
        residual = self.wte(batch.tokens) if hidden is None else hidden
        x = self.wpe(batch.positions) if hidden is None else None
        pages_of = layer_pages(batch, self.cache_specs)
        for layer, pages in zip(self.h.values(), pages_of, strict=True):
            x = layer(x, residual, pages)
        if self.stage.last:
            return self.ln_f.add(x, residual)
        assert x is not None, "a stage has layers"
        ops.add(x, residual)
        return residual


class GPT2(nn.Module):
    """The transformer and its head."""

    def __init__(self, config: ModelConfig, mesh: Mesh, stage: Stage) -> None:
        super().__init__()
        self.transformer = Transformer(config, mesh, stage)
        if stage.last:
            self.lm_head = output_table(config, mesh, getattr(self.transformer, "wte", None))
        self.cache_specs = self.transformer.cache_specs

    def forward(self, batch: ModelInput, hidden: Tensor | None = None) -> Tensor:
        found: Tensor = self.transformer(batch, hidden)
        return found

    def logits(self, hidden: Tensor) -> Tensor:
        return self.lm_head.logits(hidden)

    def greatest(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        return self.lm_head.greatest(hidden)


def gpt2(
    config: ModelConfig, mesh: Mesh, *, stage: Stage | None = None, max_len: int | None = None
) -> GPT2:
    if config.get("add_cross_attention", False):
        raise LoadError(f"{config.path}: add_cross_attention needs an encoder, which is not built")
    return GPT2(config, mesh, stage or Stage(range(config.num_hidden_layers)))
