"""`shoal serve --explain` says which op runs where, and starts nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from shoal.cluster.cli import app
from shoal.engine.errors import ConfigError
from typer.testing import CliRunner


def test_a_table_of_the_bundled_model() -> None:
    shown = CliRunner().invoke(app, ["serve", "--explain", "--device", "cpu"])
    assert shown.exit_code == 0, shown.output
    facts, table = shown.output.split("\n\n")
    assert "Qwen3ForCausalLM, shoal's own code" in facts
    head, *rows = table.splitlines()
    assert head.split() == ["PART", "OP", "RUNS", "LAYERS", "WHY"]
    assert ["model.layers.*.self_attn.qkv", "linear"] in [row.split()[:2] for row in rows]


def test_json_of_several_models(tmp_path: Path, tiny_model: Path) -> None:
    file = tmp_path / "serve.yaml"
    one = f"  - model: {tiny_model}\n    device: cpu\n"
    file.write_text(f"models:\n{one}    served-model-name: a\n{one}    served-model-name: b\n")
    shown = CliRunner().invoke(app, ["serve", "-c", str(file), "--explain", "--json"])
    assert shown.exit_code == 0, shown.output
    found = json.loads(shown.output)
    assert len(found) == 2
    assert found[0]["facts"]["steps"] and found[0]["parts"][0]["op"] == "embed"


def test_json_alone_means_nothing() -> None:
    with pytest.raises(ConfigError, match="--json goes with --explain"):
        CliRunner().invoke(app, ["serve", "--json"], catch_exceptions=False)
