"""The road round the engine: what the README tells of it."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", ["tiny", "qwen3-0.6b"])
def test_the_readme_has_the_rows_of_the_results(name: str) -> None:
    found = json.loads((ROOT / f"benchmarks/results/road-{name}.json").read_text())
    rows = importlib.import_module("road").rows(found)
    assert "\n".join(rows) in (ROOT / "README.md").read_text()
