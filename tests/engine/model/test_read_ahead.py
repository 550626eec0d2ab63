"""Weights that come into the kernel's memory while Ray starts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from shoal.engine import checkpoint
from shoal.engine.config import EngineConfig
from shoal.engine.model import weights
from shoal.engine.sizing import Memory

Read = tuple[int, int]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Read]:
    """(first byte, bytes) of what is read."""
    found: list[Read] = []
    pread = os.pread

    def noting(descriptor: int, size: int, start: int) -> bytes:
        data = pread(descriptor, size, start)
        found.append((start, len(data)))
        return data

    monkeypatch.setattr(os, "pread", noting)
    return found


def test_what_is_not_in_memory_is_read_whole(
    tiny_model: Path, read: list[Read], monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(*_: object) -> int:
        raise BlockingIOError

    monkeypatch.setattr(os, "preadv", absent)
    checkpoint.read_ahead(EngineConfig(model=str(tiny_model)))
    sizes = [file.size for file in weights.weight_files(tiny_model)]
    assert sum(size for _, size in read) == sum(sizes)
    assert [start for start, _ in read[:2]] == [0, weights.AHEAD_BYTES]


def test_what_is_in_memory_is_left_there(tiny_model: Path, read: list[Read]) -> None:
    for file in weights.weight_files(tiny_model):
        file.path.read_bytes()
    checkpoint.read_ahead(EngineConfig(model=str(tiny_model)))
    assert read == []


def test_weights_that_leave_no_room_are_not_read(
    tiny_model: Path, read: list[Read], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "_is_cached", lambda *_: False)
    few = Memory(total=1 << 20, free=1 << 20, source="a test")
    monkeypatch.setattr(checkpoint, "free_memory", lambda: few)
    checkpoint.read_ahead(EngineConfig(model=str(tiny_model)))
    assert read == []


@pytest.mark.parametrize("keys", [{"model": "/nowhere"}, {"load_format": "dummy"}])
def test_what_cannot_be_read_is_left_to_whoever_loads_it(
    keys: dict[str, str], tiny_model: Path, read: list[Read]
) -> None:
    checkpoint.read_ahead(EngineConfig(**({"model": str(tiny_model)} | keys)))  # type: ignore[arg-type]
    assert read == []
