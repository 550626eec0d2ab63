"""Opening a file of weights, safetensors or `.bin`, without running anything that is in it."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import LoadError
from .weights import Entry, WeightFile

PLAIN_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
}
"""The dtypes that are weights as they stand, and what safetensors calls them."""

_FOREIGN = re.compile(r"GLOBAL ([\w.]+)")
"""How torch names what a pickle would have called."""


class Tensors(NamedTuple):
    """The tensors of an open file, in the order of `entries`; `source` is what reads them."""

    entries: Mapping[str, Entry]
    source: Any

    def whole(self, name: str) -> Any:
        """The tensor `name`, or something that reads only the slice that it is asked for."""
        if isinstance(self.source, dict):
            return self.source[name]
        return self.source.get_slice(name)


@contextmanager
def opened(file: WeightFile) -> Iterator[Tensors]:
    """The tensors of a file, in the order on disk; memory is used for what is read of them.

    A `.bin` that torch older than 1.6 wrote is read whole. Raises LoadError for a file that is
    damaged, and for a `.bin` that would have to run code.
    """
    if file.entries is None:
        table = _read_bin(file)
        try:
            yield Tensors({name: _entry(tensor) for name, tensor in table.items()}, table)
        finally:
            table.clear()  # before the next file is read
        return
    in_order = dict(sorted(file.entries.items(), key=lambda item: item[1].start))
    try:
        with safe_open(file.path, framework="pt") as source:
            yield Tensors(in_order, source)
    except SafetensorError as error:
        raise LoadError(f"{file.path} cannot be read: {error}; fetch it again") from error


def _read_bin(file: WeightFile) -> dict[str, Tensor]:
    """The table of a `.bin`, mapped into memory where its format lets it."""
    path = file.path
    try:
        table = torch.load(path, map_location="cpu", weights_only=True, mmap=bool(file.header))
    except pickle.UnpicklingError as error:
        raise LoadError(_why_not(file, str(error))) from error
    except Exception as error:  # a damaged pickle can raise anything
        first = (str(error).splitlines() or [""])[0]
        raise LoadError(
            f"{path} is cut short or damaged ({type(error).__name__}: {first}); fetch it again"
        ) from error
    if not isinstance(table, dict) or not all(isinstance(t, Tensor) for t in table.values()):
        raise LoadError(
            f"{path} is no table of tensors by name, as pytorch_model.bin must be; write one with "
            f"save_pretrained"
        )
    return table


def _why_not(file: WeightFile, said: str) -> str:
    foreign = _FOREIGN.search(said)
    if foreign:
        return (
            f"{file.path} holds pickled code ({foreign[1]}), which is never run; take the model's "
            f"safetensors, or write them where you trust the file: torch.load(FILE, "
            f"weights_only=False), then save_pretrained"
        )
    return f"{file.path} is cut short or no file of torch ({file.size:,} bytes); fetch it again"


def _entry(tensor: Tensor) -> Entry:
    kind = tensor.dtype if tensor.layout is torch.strided else tensor.layout
    name = PLAIN_DTYPES.get(kind) if isinstance(kind, torch.dtype) else None
    return Entry(name or str(kind).removeprefix("torch."), tuple(tensor.shape), 0)
