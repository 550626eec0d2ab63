"""The files of a checkpoint's weights: what they are called, whether they are whole. No torch."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import LoadError
from .formats import choose_weights, names_in

SAMPLES = 64
SAMPLE_BYTES = 4096
AHEAD_BYTES = 1 << 20
POINTER = b"version https://git-lfs"


class Entry(NamedTuple):
    """One tensor of a file: its dtype as safetensors spells it, its shape, its first byte."""

    dtype: str
    shape: tuple[int, ...]
    start: int


class WeightFile(NamedTuple):
    """One file of weights.

    `header` is what it says of its tensors, as bytes: safetensors' JSON, a `.bin`'s pickle without
    the numbers (empty in the format of torch before 1.6). `entries` is None for a `.bin`, which
    only torch can read. `size` is its bytes on disk.
    """

    path: Path
    header: bytes
    size: int
    entries: dict[str, Entry] | None


def weight_files(folder: Path, load_format: str = "auto") -> list[WeightFile]:
    """The files of a checkpoint, single or by its index, their headers read.

    Raises LoadError where one is missing, cut short or not what its name says.
    """
    names = choose_weights(folder, names_in(folder), load_format)
    return [read_header(folder / name) for name in names]


def read_header(path: Path) -> WeightFile:
    """A file's header. Raises LoadError where it is missing, cut short or not what it is called."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            if file.read(len(POINTER)) == POINTER:
                raise LoadError(
                    f"{path} is a pointer of git-lfs, not the weights: run `git lfs pull` in "
                    f"{path.parent}"
                )
        return _safetensors(path, size) if path.suffix == ".safetensors" else _bin(path, size)
    except FileNotFoundError as error:
        raise LoadError(f"{path} is missing; fetch the checkpoint again") from error
    except OSError as error:
        raise LoadError(f"{path} cannot be read: {error.strerror}") from error


def _safetensors(path: Path, size: int) -> WeightFile:
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        header = file.read(length) if 8 + length <= size else b""
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
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LoadError(f"{path} is no safetensors file; fetch it again") from error
    whole = 8 + length + max(ends, default=0)
    if size < whole:
        raise LoadError(
            f"{path} is cut short: {size:,} of {whole:,} bytes are there; fetch it again"
        )
    return WeightFile(path, header, size, entries)


def _bin(path: Path, size: int) -> WeightFile:
    with path.open("rb") as file:
        zipped = file.read(2) == b"PK"
    if not zipped:
        return WeightFile(path, b"", size, None)
    try:
        with zipfile.ZipFile(path) as archive:
            (pickle,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
            return WeightFile(path, archive.read(pickle), size, None)
    except (zipfile.BadZipFile, ValueError) as error:
        # The list of what the archive holds is its end.
        raise LoadError(f"{path} is cut short ({size:,} bytes); fetch it again") from error


def read_ahead(files: Iterable[WeightFile]) -> None:
    """Have the kernel keep files in its memory, as far as they are not there: who loads them soon
    does not wait for the disk. Costs next to nothing where they are.
    """
    for file in files:
        with file.path.open("rb", buffering=0) as opened:
            for start in range(0, file.size, AHEAD_BYTES):
                if not _is_cached(opened.fileno(), start):
                    os.pread(opened.fileno(), AHEAD_BYTES, start)


def _is_cached(descriptor: int, start: int) -> bool:
    """Whether the kernel has this byte in memory; where it cannot tell, it is taken to have it."""
    try:
        os.preadv(descriptor, [bytearray(1)], start, os.RWF_NOWAIT)
    except BlockingIOError:
        return False
    except (AttributeError, OSError):
        return True
    return True


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
