"""safetensors files: what they hold, whether they are whole, and what they are called."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import LoadError

INDEX = "model.safetensors.index.json"
SAMPLES = 64
SAMPLE_BYTES = 4096


class Entry(NamedTuple):
    """One tensor of a file: its dtype as safetensors spells it, its shape, its first byte."""

    dtype: str
    shape: tuple[int, ...]
    start: int


class WeightFile(NamedTuple):
    """One safetensors file. `header` is its raw JSON, `size` its bytes on disk."""

    path: Path
    header: bytes
    size: int
    entries: dict[str, Entry]


def weight_files(folder: Path) -> list[WeightFile]:
    """The files of a checkpoint, single or by its index, their headers read.

    Raises LoadError where one is missing, cut short or no safetensors.
    """
    return [read_header(path) for path in _paths(folder)]


def _paths(folder: Path) -> Sequence[Path]:
    index = folder / INDEX
    if index.is_file():
        try:
            names = sorted(
                set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            )
        except (json.JSONDecodeError, KeyError, AttributeError) as error:
            raise LoadError(f"{index} is no index of safetensors: {error!r}") from error
        return [folder / name for name in names]
    single = folder / "model.safetensors"
    if single.is_file():
        return [single]
    found = sorted(folder.glob("*.safetensors"))
    if found:
        return found
    other = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pth", ".gguf"))
    if other:
        raise LoadError(
            f"{folder} holds {other[0]} but no safetensors; other formats are not read: convert "
            f"it with transformers' save_pretrained"
        )
    raise LoadError(f"{folder} holds no *.safetensors; was the download complete?")


def read_header(path: Path) -> WeightFile:
    """A file's header. Raises LoadError where it is missing, cut short or no safetensors."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
            header = file.read(length) if 8 + length <= size else b""
    except FileNotFoundError as error:
        raise LoadError(f"{path} is missing; fetch the checkpoint again") from error
    except OSError as error:
        raise LoadError(f"{path} cannot be read: {error.strerror}") from error
    if len(prefix) < 8 or 8 + length > size:
        raise LoadError(f"{path} is cut short ({size:,} bytes); fetch it again")
    try:
        fields: dict[str, Any] = json.loads(header)
        entries = {
            name: Entry(field["dtype"], tuple(field["shape"]), field["data_offsets"][0])
            for name, field in fields.items()
            if name != "__metadata__"
        }
        ends = [f["data_offsets"][1] for name, f in fields.items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError) as error:
        raise LoadError(f"{path} is no safetensors file; fetch it again") from error
    whole = 8 + length + max(ends, default=0)
    if size < whole:
        raise LoadError(
            f"{path} is cut short: {size:,} of {whole:,} bytes are there; fetch it again"
        )
    return WeightFile(path, header, size, entries)


def digest(config_text: str, files: Sequence[WeightFile], *more: str) -> str:
    """A name for a model's weights: equal for equal content, in 128 bits of hex.

    Covers config.json, the words of `more`, and of each file its header (names, shapes, places of
    all tensors), its size, and 64 pieces of 4 KiB spread evenly from its first byte to its last.
    So it costs milliseconds for any size; retrained, converted or requantized weights differ in
    every piece, while a single number changed by hand between two pieces would go unseen.
    """
    total = hashlib.blake2b(digest_size=16)
    for word in (config_text, *more):
        total.update(hashlib.blake2b(word.encode()).digest())
    for weight_file in files:
        total.update(hashlib.blake2b(weight_file.header).digest())
        total.update(weight_file.size.to_bytes(8, "little"))
        last = max(0, weight_file.size - SAMPLE_BYTES)
        with weight_file.path.open("rb") as file:
            for offset in sorted({last * i // (SAMPLES - 1) for i in range(SAMPLES)}):
                total.update(os.pread(file.fileno(), SAMPLE_BYTES, offset))
    return total.hexdigest()
