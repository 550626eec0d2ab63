"""The benchmark of the choice of a replica, on few chats and keys."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest


def test_chats_are_routed_and_a_choice_is_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    routing = importlib.import_module("routing")
    file = tmp_path / "found.json"
    monkeypatch.setattr(sys, "argv", ["routing.py", "--sessions", "2", "--json", str(file)])
    routing.main()
    found = json.loads(file.read_text())
    assert found["command"].startswith("python benchmarks/routing.py --sessions 2 ")
    assert len(found["runs"]) == 5 and all(0 <= run["hit_rate"] <= 1 for run in found["runs"])
    assert [one["replicas"] for one in found["choice"]] == [4, 64]
