"""What ranks leave behind in shared memory, and who removes it."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from shoal.engine.worker import exchange


def test_the_next_ranks_remove_what_killed_ones_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "_SHARED", tmp_path)
    left, meeting = Path(exchange._make_folder(2)), Path(exchange._make_folder(2))
    assert left.parent == tmp_path and left.is_dir()
    others = tmp_path / "others"
    others.mkdir()
    for folder in (left, others):
        old = time.time() - exchange.STALE_S - 1
        os.utime(folder, (old, old))
    third = Path(exchange._make_folder(2))
    assert sorted(tmp_path.iterdir()) == sorted([meeting, others, third])


def test_nothing_is_left_to_remove_once_ranks_have_met(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "_SHARED", tmp_path)
    barrier, folders = threading.Barrier(3, timeout=60), [""]

    def share(folder: str) -> str:
        folders[0] = folder or folders[0]
        barrier.wait()
        return folders[0]

    def join(rank: int) -> exchange.Exchange:
        return exchange.Exchange(rank, 3, share, barrier.wait)

    with ThreadPoolExecutor(3) as threads:
        ranks = list(threads.map(join, range(3)))
    assert folders[0].startswith(str(tmp_path)) and not list(tmp_path.iterdir())
    for rank in ranks:
        rank.close()
