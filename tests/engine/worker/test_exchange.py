"""What ranks that were killed while they met leave behind, and who removes it."""

from __future__ import annotations

import os
import time
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
