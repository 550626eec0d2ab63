"""Weights in the order in which their device reads them best.

A layer that can hold its `weight` so says it with `packing`, the options of `ops.pack`; None where
it should stay as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from ...kernels import ops


def pack(model: nn.Module) -> None:
    """Pack a model's weights, one after the other: memory is needed for one more weight at most."""
    for layer, options in _packable(model):
        weight = layer.weight
        packed = ops.pack(weight, **options)
        if packed is not weight:
            del layer.weight
            layer.weight = packed
        del weight


def num_bytes(model: nn.Module, *, packed: bool) -> int:
    """Bytes of a model's weights before they are packed, or once they are."""
    size = sum(weight.nbytes for weight in model.parameters())
    if packed:
        for layer, options in _packable(model):
            size += ops.packed_bytes(layer.weight, **options) - layer.weight.nbytes
    return size


def _packable(model: nn.Module) -> Iterator[tuple[Any, Mapping[str, Any]]]:
    for layer in model.modules():
        options = getattr(layer, "packing", None)
        if options is not None and isinstance(layer.weight, nn.Parameter):
            yield layer, options
