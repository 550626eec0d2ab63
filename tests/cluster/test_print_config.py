"""What `--print-config` shows reads back to the same, without the secrets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from shoal.cluster.print_config import printed
from shoal.cluster.resolve import configure, resolve

FILE = """\
# for the test
model: org/name
max-model-len: 32k
served-model-name: [a, "b: c", "no"]
revision: "1.0"
shutdown-timeout: 0.00001
"""
SEVERAL = """\
port: 9000
max-num-seqs: 8
models:
  - model: org/one
    replicas: 2
  - model: org/two
    served-model-name: two
    max-num-seqs: 4
"""


@pytest.mark.parametrize("text", ["", FILE, SEVERAL])
@pytest.mark.parametrize("flags", ["", "--no-enable-prefix-caching --allowed-origins * --seed -5"])
def test_it_reads_back(tmp_path: Path, text: str, flags: str) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text(text)
    resolved = resolve(["--config", str(first), *flags.split()], {})
    second.write_text(printed(resolved))
    assert configure(["--config", str(second)], {}) == resolved.config


def test_each_line_says_where_its_value_comes_from(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(FILE)
    environ = {"VLLM_LOGGING_LEVEL": "DEBUG", "SHOAL_API_KEY": "hidden-1"}
    shown = printed(resolve(["-c", str(file), "-dp", "2"], environ))
    said = {line.partition(":")[0]: line.rpartition("  # ")[2] for line in shown.splitlines()}
    assert said["replicas"] == "command line"
    assert said["max-model-len"] == f"{file}, line 3"
    assert said["uvicorn-log-level"] == "environment, VLLM_LOGGING_LEVEL"
    assert said["host"] == "default"
    assert said["# api-key"] == "environment, SHOAL_API_KEY"
    assert "hidden-1" not in shown


def test_several_models_stand_in_a_list(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(SEVERAL)
    shown = printed(resolve(["-c", str(file)], {}))
    assert f"models:{' ' * 37}  # {file}, line 3\n  - model: org/one" in shown
    (first, second) = (block.splitlines() for block in shown.split("  - model: ")[1:])
    assert any("max-num-seqs: 8" in line and line.endswith("line 2") for line in first)
    assert any("max-num-seqs: 4" in line and line.endswith("line 8") for line in second)


def test_the_command_ends_with_0_and_loads_neither_ray_nor_torch() -> None:
    code = (
        "import json, sys\n"
        "from shoal.cluster.cli import app\n"
        "try: app(['serve', '--print-config', '--swap-space', '4', '--local', '--api-key', 'k9'])\n"
        "except SystemExit as end: print(json.dumps([end.code, sorted(sys.modules)]))\n"
    )
    environ = {**os.environ, "VLLM_USE_V1": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environ, check=True
    )
    *shown, last = done.stdout.splitlines()
    status, modules = json.loads(last)
    assert status == 0
    assert not {"ray", "torch", "transformers", "fastapi"} & set(modules)
    assert any(line.startswith("local: true ") for line in shown)
    assert "k9" not in done.stdout + done.stderr
    assert "--swap-space 4: preempted requests are recomputed" in done.stderr
    assert "VLLM_USE_V1: there is one engine" in done.stderr
