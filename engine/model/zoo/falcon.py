"""Falcon: Almazrouei et al., 2023. Attention and feed-forward read the same stream side by side;
few key-value heads serve all queries. Positions turn the heads, or (Falcon-RW) fade their keys."""

from __future__ import annotations

from torch import Tensor, nn

from ....kernels import ops
from ...plan import CacheSpec
from ..alibi import Alibi
from ..batch import ModelInput
from ..config import ModelConfig
from ..decoder import Angles
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
from ..rope import Rotary


class Attention(nn.Module):
    """Grouped-query attention; the checkpoint's one tensor holds, key-value head by key-value head,
    the queries that it serves, itself and its value.

    `reduce` False leaves the sum over ranks to the layer.
    """

    def __init__(self, config: ModelConfig, mesh: Mesh, *, reduce: bool) -> None:
        super().__init__()
        bias = config.get("bias", False)
        self.size = config.head_size
        self.scale = self.size**-0.5
        self.query_key_value, self.heads = qkv_linear(
            config, mesh, bias=bias, fused=config.num_kv_heads
        )
        self.dense = RowLinear(
            mesh,
            config.num_attention_heads,
            self.size,
            config.hidden_size,
            bias=bias,
            unit="attention heads",
            reduce=reduce,
        )
        self.spec = CacheSpec(self.heads.kv, self.size)

    def forward(
        self, x: Tensor, angles: Angles | None, alibi: Tensor | None, pages: Pages
    ) -> Tensor:
        heads = self.query_key_value(x).view(len(x), -1, self.size)
        q, k, v = heads.split((self.heads.q, self.heads.kv, self.heads.kv), dim=1)
        if angles is not None:
            ops.rope(heads[:, : self.heads.q + self.heads.kv], *angles)
        out: Tensor = self.dense(pages.attend(q, k, v, scale=self.scale, alibi=alibi))
        return out


class MLP(nn.Module):
    """The feed-forward block `dense_4h_to_h(act(dense_h_to_4h(x)))`."""

    def __init__(self, config: ModelConfig, mesh: Mesh, *, reduce: bool) -> None:
        super().__init__()
        bias, hidden, inner = (
            config.get("bias", False),
            config.hidden_size,
            config.intermediate_size,
        )
        self.act = activation(config, ACTIVATIONS)
        self.dense_h_to_4h = ColumnLinear(mesh, hidden, {"dense_h_to_4h": (inner, 1)}, bias=bias)
        self.dense_4h_to_h = RowLinear(
            mesh, inner, 1, hidden, bias=bias, unit="feed-forward columns", reduce=reduce
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.dense_4h_to_h(self.act(self.dense_h_to_4h(x)))
        return out


class ParallelLayer(nn.Module):
    """Attention beside feed-forward, behind one norm or a norm each; ranks sum up both at once."""

    def __init__(self, config: ModelConfig, mesh: Mesh) -> None:
        super().__init__()
        norms = config.get("num_ln_in_parallel_attn", 2)
        self.two_norms = config.get("new_decoder_architecture", False) and norms == 2
        hidden, eps = config.hidden_size, config.layer_norm_epsilon
        if self.two_norms:
            self.ln_attn, self.ln_mlp = LayerNorm(hidden, eps), LayerNorm(hidden, eps)
        else:
            self.input_layernorm = LayerNorm(hidden, eps)
        self.self_attention = Attention(config, mesh, reduce=False)
        self.mlp = MLP(config, mesh, reduce=False)
        self.mesh = mesh

    def forward(
        self,
        x: Tensor | None,
        residual: Tensor,
        angles: Angles | None,
        alibi: Tensor | None,
        pages: Pages,
    ) -> Tensor:
        """x is what the layer before adds to the residual, None in the first; returns the next."""
        if self.two_norms:
            for_attention = self.ln_attn.add(x, residual)
            for_mlp = self.ln_mlp(residual)
        else:
            for_attention = for_mlp = self.input_layernorm.add(x, residual)
        out: Tensor = self.mlp(for_mlp)
        ops.add(self.self_attention(for_attention, angles, alibi, pages), out)
        return self.mesh.all_reduce(out)


class SequentialLayer(nn.Module):
    """Attention, then feed-forward, each behind a norm and added to the residual stream."""

    def __init__(self, config: ModelConfig, mesh: Mesh) -> None:
        super().__init__()
        self.input_layernorm = LayerNorm(config.hidden_size, config.layer_norm_epsilon)
        self.self_attention = Attention(config, mesh, reduce=True)
        self.post_attention_layernorm = LayerNorm(config.hidden_size, config.layer_norm_epsilon)
        self.mlp = MLP(config, mesh, reduce=True)

    def forward(
        self,
        x: Tensor | None,
        residual: Tensor,
        angles: Angles | None,
        alibi: Tensor | None,
        pages: Pages,
    ) -> Tensor:
        """x is what the layer before adds to the residual, None in the first; returns the next."""
        x = self.self_attention(self.input_layernorm.add(x, residual), angles, alibi, pages)
        out: Tensor = self.mlp(self.post_attention_layernorm.add(x, residual))
        return out


class Transformer(nn.Module):
    """Tokens to hidden states, or the part of that way which `stage` is."""

    def __init__(self, config: ModelConfig, mesh: Mesh, stage: Stage, max_len: int | None) -> None:
        super().__init__()
        if holds_embedding(config, stage):
            self.word_embeddings = Embedding(mesh, config.vocab_size, config.hidden_size)
        parallel = config.get("new_decoder_architecture", False) or config.parallel_attn
        layer = ParallelLayer if parallel else SequentialLayer
        stack = {str(index): layer(config, mesh) for index in stage.layers}
        self.h = nn.ModuleDict(stack)
        self.cache_specs = [built.self_attention.spec for built in stack.values()]
        if stage.last:
            self.ln_f = LayerNorm(config.hidden_size, config.layer_norm_epsilon)
        fading = config.get("alibi", False)
        self.alibi = Alibi(config, mesh) if fading else None
        self.rotary = None if fading else Rotary(config, max_len)
        self.stage = stage

    def forward(self, batch: ModelInput, hidden: Tensor | None) -> Tensor:
        residual = self.word_embeddings(batch.tokens) if hidden is None else hidden
        angles = self.rotary(batch.positions, residual.dtype) if self.rotary else None
        alibi = self.alibi.table if self.alibi else None
        pages_of = layer_pages(batch, self.cache_specs)
        x = None
        for layer, pages in zip(self.h.values(), pages_of, strict=True):
            x = layer(x, residual, angles, alibi, pages)
        if self.stage.last:
            return self.ln_f.add(x, residual)
        assert x is not None, "a stage has layers"
        ops.add(x, residual)
        return residual


class Falcon(nn.Module):
    """The transformer and its head."""

    def __init__(self, config: ModelConfig, mesh: Mesh, stage: Stage, max_len: int | None) -> None:
        super().__init__()
        self.transformer = Transformer(config, mesh, stage, max_len)
        if stage.last:
            table = getattr(self.transformer, "word_embeddings", None)
            self.lm_head = output_table(config, mesh, table)
        self.cache_specs = self.transformer.cache_specs

    def forward(self, batch: ModelInput, hidden: Tensor | None = None) -> Tensor:
        found: Tensor = self.transformer(batch, hidden)
        return found

    def logits(self, hidden: Tensor) -> Tensor:
        return self.lm_head.logits(hidden)

    def greatest(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        return self.lm_head.greatest(hidden)


def falcon(
    config: ModelConfig, mesh: Mesh, *, stage: Stage | None = None, max_len: int | None = None
) -> Falcon:
    return Falcon(config, mesh, stage or Stage(range(config.num_hidden_layers)), max_len)
