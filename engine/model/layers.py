"""The layers that models are made of: weights, how ranks share them, and the ops they go through.

Layers are built without memory, on the meta device; `registry.build` gives their parameters a
dtype, a device and storage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...kernels import ops
from ..errors import LoadError
from .config import ModelConfig
from .mesh import Mesh, Stage
from .shard import Claim, Runs, column_share, row_share


def parameter(*shape: int) -> nn.Parameter:
    """A weight to be loaded."""
    return nn.Parameter(torch.empty(shape, device="meta"), requires_grad=False)


class ColumnLinear(nn.Module):
    """Several projections of one input as one product; each rank computes its units of every one.

    `parts`: checkpoint name beside this layer to (units, width of a unit). A part with fewer units
    than ranks is repeated. Returns [T, this rank's columns], part after part; `columns` are their
    widths.
    `fused`: the checkpoint has one tensor, of this layer's own name, that holds the parts in turn,
    this many times over; all units are then of one width. `transposed`: its weights lie input by
    output. `gated`: it has two parts and returns `silu(first) * second`.
    """

    def __init__(
        self,
        mesh: Mesh,
        in_size: int,
        parts: Mapping[str, tuple[int, int]],
        *,
        bias: bool = False,
        unit: str = "columns",
        fused: int | None = None,
        transposed: bool = False,
        gated: bool = False,
    ) -> None:
        super().__init__()
        self.parts = dict(parts)
        self.packing = {"paired": gated}
        self.fused = fused
        self.transposed = transposed
        self.shares = [
            column_share(units, mesh, f"{name} {unit}") for name, (units, _) in parts.items()
        ]
        self.columns = [
            share.units * width
            for share, (_, width) in zip(self.shares, parts.values(), strict=True)
        ]
        self.weight = parameter(sum(self.columns), in_size)
        self.bias = parameter(sum(self.columns)) if bias else None

    def claims(self, path: str) -> Iterator[Claim]:
        parent = path.rpartition(".")[0]
        kinds = (("weight", self.weight, self.transposed), ("bias", self.bias, False))
        for kind, whole, transposed in kinds:
            if whole is None:
                continue
            pieces = torch.split(whole, self.columns)
            rows = zip(self.parts, self.shares, self._runs(), pieces, strict=True)
            for name, share, runs, piece in rows:
                own = f"{parent}.{name}" if self.fused is None else path
                dim = 1 if transposed else 0
                yield Claim(f"{own}.{kind}", piece, dim, share.part, share.of, runs, transposed)

    def _runs(self) -> list[Runs]:
        """Where each part lies in the checkpoint's tensor."""
        if self.fused is None:
            return [Runs()] * len(self.parts)
        units = [units // self.fused for units, _ in self.parts.values()]
        stops = list(accumulate(units))
        return [
            Runs(self.fused, stop - count, stop, stops[-1])
            for count, stop in zip(units, stops, strict=True)
        ]

    def forward(self, x: Tensor) -> Tensor:
        product = ops.gated_linear if self.packing["paired"] else ops.linear
        return product(x, self.weight, self.bias)


class Heads(NamedTuple):
    """How many query heads and key-value heads this rank computes."""

    q: int
    kv: int


def qkv_linear(
    config: ModelConfig,
    mesh: Mesh,
    *,
    bias: bool,
    fused: int | None = None,
    transposed: bool = False,
) -> tuple[ColumnLinear, Heads]:
    """Queries, keys and values of an attention block as one product."""
    size = config.head_size
    parts = {
        "q_proj": (config.num_attention_heads, size),
        "k_proj": (config.num_kv_heads, size),
        "v_proj": (config.num_kv_heads, size),
    }
    linear = ColumnLinear(
        mesh,
        config.hidden_size,
        parts,
        bias=bias,
        unit="heads",
        fused=fused,
        transposed=transposed,
    )
    return linear, Heads(linear.shares[0].units, linear.shares[1].units)


class RowLinear(nn.Module):
    """A product whose input the ranks hold in slices: its result is the sum over ranks.

    The input has `units` units of `width` columns. `transposed`: its weights lie input by
    output. `reduce` False leaves the sum over ranks to whoever adds more to it first.
    """

    def __init__(
        self,
        mesh: Mesh,
        units: int,
        width: int,
        out_size: int,
        *,
        bias: bool = False,
        unit: str = "columns",
        transposed: bool = False,
        reduce: bool = True,
    ) -> None:
        super().__init__()
        self.mesh = mesh
        self.transposed = transposed
        self.reduce = reduce
        self.packing: dict[str, bool] = {}
        self.share = row_share(units, mesh, unit)
        self.weight = parameter(out_size, self.share.units * width)
        self.bias = parameter(out_size) if bias else None

    def claims(self, path: str) -> Iterator[Claim]:
        dim = 0 if self.transposed else 1
        part, of, _ = self.share
        yield Claim(f"{path}.weight", self.weight, dim, part, of, transposed=self.transposed)
        if self.bias is not None:
            yield Claim(f"{path}.bias", self.bias)

    def forward(self, x: Tensor) -> Tensor:
        # One rank alone adds the bias, or the sum would hold it `size` times.
        bias = self.bias if self.mesh.rank == 0 else None
        out = ops.linear(x, self.weight, bias)
        return self.mesh.all_reduce(out) if self.reduce else out


class Embedding(nn.Module):
    """The vocabulary's table: tokens to hidden states and hidden states to logits.

    Each rank holds an equal run of rows; the last runs may be shorter, or empty. `head`: it gives
    logits, perhaps beside hidden states.
    """

    def __init__(
        self, mesh: Mesh, vocab_size: int, hidden_size: int, *, head: bool = False
    ) -> None:
        super().__init__()
        self.packing: dict[str, bool] | None = {} if head else None
        self.mesh = mesh
        self.vocab_size = vocab_size
        self.run = -(-vocab_size // mesh.size)
        self.start = min(mesh.rank * self.run, vocab_size)
        self.weight = parameter(min(self.run, vocab_size - self.start), hidden_size)

    def claims(self, path: str) -> Iterator[Claim]:
        yield Claim(f"{path}.weight", self.weight, 0, self.mesh.rank, self.mesh.size)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.mesh.all_reduce(ops.embed(tokens, self.weight, start=self.start))

    def logits(self, hidden: Tensor) -> Tensor:
        """[S, vocab_size] float32 on every rank."""
        found = ops.logits(hidden, self.weight)
        if self.mesh.size == 1:
            return found
        full = found.new_zeros(len(hidden), self.run)
        full[:, : found.shape[1]] = found
        return self.mesh.all_gather(full)[:, : self.vocab_size]

    def greatest(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Of each row the greatest logit [S] and the first id that has it [S]."""
        if self.mesh.size == 1:
            return ops.greatest_logit(hidden, self.weight)
        return ops.greatest(self.logits(hidden))


class RMSNorm(nn.Module):
    """Root mean square norm, alone or with the residual added first."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = parameter(size)
        self.eps = eps

    def claims(self, path: str) -> Iterator[Claim]:
        yield Claim(f"{path}.weight", self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return ops.rms_norm(x, self.weight, self.eps)

    def add(self, x: Tensor | None, residual: Tensor) -> Tensor:
        """Add x, if there is anything to add yet, to the residual in place; the norm of that."""
        if x is None:
            return ops.rms_norm(residual, self.weight, self.eps)
        return ops.add_rms_norm(x, residual, self.weight, self.eps)


class LayerNorm(nn.Module):
    """Norm to mean and variance, alone or with the residual added first."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = parameter(size)
        self.bias = parameter(size)
        self.eps = eps

    def claims(self, path: str) -> Iterator[Claim]:
        yield Claim(f"{path}.weight", self.weight)
        yield Claim(f"{path}.bias", self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return ops.layer_norm(x, self.weight, self.bias, self.eps)

    def add(self, x: Tensor | None, residual: Tensor) -> Tensor:
        """Add x, if there is anything to add yet, to the residual in place; the norm of that."""
        if x is None:
            return ops.layer_norm(residual, self.weight, self.bias, self.eps)
        return ops.add_layer_norm(x, residual, self.weight, self.bias, self.eps)


Activation = Callable[[Tensor], Tensor]

ACTIVATIONS: Mapping[str, Activation] = {
    **dict.fromkeys(("gelu", "gelu_python"), ops.gelu),
    **dict.fromkeys(
        ("gelu_new", "gelu_fast", "gelu_accurate", "gelu_pytorch_tanh", "gelu_python_tanh"),
        partial(ops.gelu, tanh=True),
    ),
    "relu": ops.relu,
}
"""By the names of transformers, which has several for one function."""

GATED = dict.fromkeys(("silu", "swish"), ops.silu_mul)
"""What `ColumnLinear` can do with a gate."""


def activation(config: ModelConfig, known: Mapping[str, Activation]) -> Activation:
    """What `hidden_act` names. Raises LoadError where that is not among `known`."""
    name = config.get("hidden_act", "silu")
    if name not in known:
        raise LoadError(
            f"{config.path}: hidden_act {name!r} is not built here for {config.architecture}, only "
            f"{', '.join(known)}; model_impl: transformers may know it"
        )
    return known[name]


class GatedMLP(nn.Module):
    """The feed-forward block `down(silu(gate(x)) * up(x))`."""

    def __init__(self, config: ModelConfig, mesh: Mesh, *, bias: bool = False) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        activation(config, GATED)
        parts = {"gate_proj": (inner, 1), "up_proj": (inner, 1)}
        self.gate_up = ColumnLinear(mesh, hidden, parts, bias=bias, gated=True)
        self.down_proj = RowLinear(mesh, inner, 1, hidden, bias=bias, unit="feed-forward columns")

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(self.gate_up(x))
        return out


def holds_embedding(config: ModelConfig, stage: Stage) -> bool:
    """Whether a stage has the table of embeddings: for its tokens, or as its head."""
    return stage.first or (stage.last and config.get("tie_word_embeddings", False))


def output_table(config: ModelConfig, mesh: Mesh, embedding: Embedding | None) -> Embedding:
    """The table behind the logits: the embedding's own where the config ties the two."""
    if embedding is not None and config.get("tie_word_embeddings", False):
        embedding.packing = {}
        return embedding
    return Embedding(mesh, config.vocab_size, config.hidden_size, head=True)
