"""The layers that models are made of: weights, how ranks share them, and the ops they go through.

Layers are built without memory, on the meta device; `registry.build` gives their parameters a
dtype, a device and storage.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...kernels import ops
from .config import ModelConfig
from .mesh import Mesh
from .shard import Claim, column_share, row_share


def parameter(*shape: int) -> nn.Parameter:
    """A weight to be loaded."""
    return nn.Parameter(torch.empty(shape, device="meta"), requires_grad=False)


class ColumnLinear(nn.Module):
    """Several projections of one input as one product; each rank computes its units of every one.

    `parts`: checkpoint name beside this layer to (units, width of a unit). A part with fewer units
    than ranks is repeated. Returns [T, this rank's columns], part after part; `columns` are their
    widths.
    """

    def __init__(
        self,
        mesh: Mesh,
        in_size: int,
        parts: Mapping[str, tuple[int, int]],
        *,
        bias: bool = False,
        unit: str = "columns",
    ) -> None:
        super().__init__()
        self.names = tuple(parts)
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
        for kind, whole in (("weight", self.weight), ("bias", self.bias)):
            if whole is None:
                continue
            pieces = torch.split(whole, self.columns)
            for name, share, piece in zip(self.names, self.shares, pieces, strict=True):
                yield Claim(f"{parent}.{name}.{kind}", piece, 0, share.part, share.of)

    def forward(self, x: Tensor) -> Tensor:
        return ops.linear(x, self.weight, self.bias)


class Heads(NamedTuple):
    """How many query heads and key-value heads this rank computes."""

    q: int
    kv: int


def qkv_linear(config: ModelConfig, mesh: Mesh, *, bias: bool) -> tuple[ColumnLinear, Heads]:
    """Queries, keys and values of an attention block as one product."""
    num_heads, num_kv_heads, size = (
        config.num_attention_heads,
        config.num_kv_heads,
        config.head_size,
    )
    parts = {
        "q_proj": (num_heads, size),
        "k_proj": (num_kv_heads, size),
        "v_proj": (num_kv_heads, size),
    }
    linear = ColumnLinear(mesh, config.hidden_size, parts, bias=bias, unit="heads")
    return linear, Heads(linear.shares[0].units, linear.shares[1].units)


class RowLinear(nn.Module):
    """A product whose input the ranks hold in slices: its result is the sum over ranks.

    The input has `units` units of `width` columns.
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
    ) -> None:
        super().__init__()
        self.mesh = mesh
        self.share = row_share(units, mesh, unit)
        self.weight = parameter(out_size, self.share.units * width)
        self.bias = parameter(out_size) if bias else None

    def claims(self, path: str) -> Iterator[Claim]:
        yield Claim(f"{path}.weight", self.weight, 1, self.share.part, self.share.of)
        if self.bias is not None:
            yield Claim(f"{path}.bias", self.bias)

    def forward(self, x: Tensor) -> Tensor:
        # One rank alone adds the bias, or the sum would hold it `size` times.
        bias = self.bias if self.mesh.rank == 0 else None
        return self.mesh.all_reduce(ops.linear(x, self.weight, bias))


class Embedding(nn.Module):
    """The vocabulary's table: tokens to hidden states and hidden states to logits.

    Each rank holds an equal run of rows; the last runs may be shorter, or empty.
    """

    def __init__(self, mesh: Mesh, vocab_size: int, hidden_size: int) -> None:
        super().__init__()
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
        found = ops.linear(hidden, self.weight).float()
        if self.mesh.size == 1:
            return found
        full = found.new_zeros(len(hidden), self.run)
        full[:, : found.shape[1]] = found
        return self.mesh.all_gather(full)[:, : self.vocab_size]


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


class GatedMLP(nn.Module):
    """The feed-forward block `down(silu(gate(x)) * up(x))`."""

    def __init__(
        self, mesh: Mesh, hidden_size: int, intermediate_size: int, *, bias: bool = False
    ) -> None:
        super().__init__()
        parts = {"gate_proj": (intermediate_size, 1), "up_proj": (intermediate_size, 1)}
        self.gate_up = ColumnLinear(mesh, hidden_size, parts, bias=bias)
        self.down_proj = RowLinear(
            mesh, intermediate_size, 1, hidden_size, bias=bias, unit="feed-forward columns"
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(ops.silu_mul(self.gate_up(x)))
        return out
