"""From tensors to the structs of native.h."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from ctypes import c_void_p
from typing import Any

from torch import Tensor

from .panels import DTYPES
from .structures import ARGS, Cache, Dtype, Kind, Matrix, Panels

Fields = Mapping[str, Any]
"""A struct's fields by name, where they are not zero: tensors for what native.h has a Matrix, an
address or a Cache for, Packed for Panels, Fields for a step inside, numbers for the rest."""

Locate = Callable[[Any], Matrix]
"""Where a tensor of `Fields` lies: its address, its row stride and its dtype."""


def lies(x: Tensor) -> Matrix:
    """Where a tensor with memory lies. The dtype means nothing where native.h names it itself."""
    stride = x.stride(0) if x.dim() else 0
    return Matrix(x.data_ptr(), stride, DTYPES.get(x.dtype, Dtype.F32))


def bind(kind: Kind, fields: Fields, locate: Locate = lies) -> ctypes.Structure:
    """The arguments of a step. They hold addresses: whoever runs it keeps the tensors alive."""
    return _bound(ARGS[kind], fields, locate)


def _bound(struct: type[ctypes.Structure], fields: Fields, locate: Locate) -> ctypes.Structure:
    bound = struct()
    for name, form, *_ in bound._fields_:
        value = fields.get(name)
        if value is None:
            continue
        if form is Matrix:
            value = locate(value)
        elif form is c_void_p:
            value = locate(value).data
        elif form is Panels:
            value = value.panels
        elif form is Cache:
            value = _cache(value)
        elif issubclass(form, ctypes.Structure):
            value = _bound(form, value, locate)
        setattr(bound, name, value)
    return bound


def _cache(kv: Tensor) -> Cache:
    _, blocks, block_size, heads, head_size = kv.shape
    return Cache(kv.data_ptr(), blocks, block_size, heads, head_size, DTYPES[kv.dtype])
