"""Which part of which checkpoint tensor belongs where.

A layer that owns weights has a method `claims(path)`, where `path` is its own dotted place in the
model; it yields a Claim for every checkpoint tensor that it eats.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from torch import Tensor, nn

from ..errors import ConfigError
from .mesh import Mesh


class Claim(NamedTuple):
    """The checkpoint tensor `name`, or share `share` of `of` of it along `dim`, goes into `into`.

    Shares are of equal size, but for the last ones where `of` does not divide the dimension.
    """

    name: str
    into: Tensor
    dim: int | None = None
    share: int = 0
    of: int = 1

    def cut(self, shape: tuple[int, ...]) -> tuple[slice, ...]:
        """The piece of a tensor of this shape."""
        piece = [slice(0, size) for size in shape]
        if self.dim is not None:
            size = shape[self.dim]
            width = -(-size // self.of)
            start = min(self.share * width, size)
            piece[self.dim] = slice(start, min(start + width, size))
        return tuple(piece)


class Share(NamedTuple):
    """Part `part` of `of` equal parts, each of `units` units."""

    part: int
    of: int
    units: int


def column_share(units: int, mesh: Mesh, noun: str) -> Share:
    """The units that this rank computes; fewer units than ranks means that ranks repeat them.

    Raises ConfigError where they do not come out even.
    """
    of = min(mesh.size, units)
    if units % of or mesh.size % of:
        raise _uneven(units, mesh, noun)
    return Share(mesh.rank * of // mesh.size, of, units // of)


def row_share(units: int, mesh: Mesh, noun: str) -> Share:
    """The units that this rank adds to the sum over ranks: each belongs to exactly one rank.

    Raises ConfigError where they do not come out even.
    """
    if units % mesh.size:
        raise _uneven(units, mesh, noun)
    return Share(mesh.rank, mesh.size, units // mesh.size)


def claims(model: nn.Module) -> Iterator[Claim]:
    """Every claim of a model, in the order of its layers."""
    for path, module in model.named_modules():
        layer_claims = getattr(module, "claims", None)
        if layer_claims is not None:
            yield from layer_claims(path)


def claims_among(model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[Claim]:
    """The claims of a model on a checkpoint that holds tensors of these shapes.

    A model whose checkpoints call its tensors otherwise than it does has a method of this name.
    """
    own = getattr(model, "claims_among", None)
    return claims(model) if own is None else own(shapes)


def _uneven(units: int, mesh: Mesh, noun: str) -> ConfigError:
    fitting = [size for size in range(1, min(units, 64) + 1) if units % size == 0]
    return ConfigError(
        f"tensor_parallel_size={mesh.size} cannot cut the model's {units} {noun} evenly; "
        f"use one of {', '.join(map(str, fitting))}",
        "tensor_parallel_size",
    )
