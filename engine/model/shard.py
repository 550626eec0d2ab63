"""Which part of which checkpoint tensor belongs where.

A layer that owns weights has a method `claims(path)`, where `path` is its own dotted place in the
model; it yields a Claim for every checkpoint tensor that it eats.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from torch import Tensor, nn

from ..seat import check_even
from .mesh import Mesh


class Runs(NamedTuple):
    """Where a part lies along a dimension that several parts share.

    The dimension is `groups` equal groups of `of` units; the part is units `start` to `stop` of
    each group. groups=2, start=0, stop=2, of=4: |##..|##..|
    """

    groups: int = 1
    start: int = 0
    stop: int = 1
    of: int = 1


class Cut(NamedTuple):
    """The piece `source` of a checkpoint tensor, and the place `target` that it goes to."""

    source: tuple[slice, ...]
    target: tuple[slice, ...]


class Claim(NamedTuple):
    """The checkpoint tensor `name`, or share `share` of `of` of it along `dim`, goes into `into`.

    Shares are of equal size, but for the last ones where `of` does not divide the dimension.
    `runs`: along `dim` the tensor holds other parts too, and only these runs, joined, are shared
    out. `transposed`: the checkpoint's rows are the columns of `into`; `dim` counts as there.
    """

    name: str
    into: Tensor
    dim: int | None = None
    share: int = 0
    of: int = 1
    runs: Runs = Runs()
    transposed: bool = False

    @property
    def place(self) -> Tensor:
        """`into`, seen in the checkpoint's order of dimensions."""
        return self.into.T if self.transposed else self.into

    def cuts(self, shape: tuple[int, ...]) -> list[Cut]:
        """How a tensor of this shape fills `place`. Raises ValueError where it does not fit."""
        lengths = list(shape)
        spans = [(slice(None), slice(None))]
        if self.dim is not None:
            spans, lengths[self.dim] = self._spans(shape[self.dim])
        if lengths != list(self.place.shape):
            raise ValueError(f"{self.name} of shape {list(shape)} does not fit")
        before = (slice(None),) * (self.dim or 0)
        if not shape:
            return [Cut((), ())]
        return [Cut((*before, source), (*before, target)) for source, target in spans]

    def _spans(self, size: int) -> tuple[list[tuple[slice, slice]], int]:
        """Slices of a dimension of this size with their places, and the length of all together."""
        groups, first, last, of = self.runs
        if size % (groups * of):
            raise ValueError(f"{size} is not {groups} times {of} equal units")
        group = size // groups
        begin, run = group * first // of, group * (last - first) // of
        width = -(-groups * run // self.of)
        start = min(self.share * width, groups * run)
        stop = min(start + width, groups * run)
        spans = []
        for index in range(start // run, -(-stop // run)) if stop > start else ():
            low, high = max(start, index * run), min(stop, (index + 1) * run)
            offset = index * (group - run) + begin
            spans.append((slice(low + offset, high + offset), slice(low - start, high - start)))
        return spans, stop - start


class Share(NamedTuple):
    """Part `part` of `of` equal parts, each of `units` units."""

    part: int
    of: int
    units: int


def column_share(units: int, mesh: Mesh, noun: str) -> Share:
    """The units that this rank computes; fewer units than ranks means that ranks repeat them.

    Raises ConfigError where they do not come out even.
    """
    check_even(units, mesh.size, noun, repeated=True)
    of = min(mesh.size, units)
    return Share(mesh.rank * of // mesh.size, of, units // of)


def row_share(units: int, mesh: Mesh, noun: str) -> Share:
    """The units that this rank adds to the sum over ranks: each belongs to exactly one rank.

    Raises ConfigError where they do not come out even.
    """
    check_even(units, mesh.size, noun, repeated=False)
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
