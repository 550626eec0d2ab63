"""The command itself, in processes of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from shoal import __version__


def shoal(*args: str, **environ: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "120", **environ}
    environment.pop("SHOAL_DEBUG", None) if "SHOAL_DEBUG" not in environ else None
    command = [sys.executable, "-m", "shoal", *args]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


@pytest.mark.parametrize("args", [("--version",), ("version",)])
def test_the_version(args: tuple[str, ...]) -> None:
    done = shoal(*args)
    assert (done.returncode, done.stdout) == (0, f"shoal {__version__}\n")


def test_help_shows_a_dozen_flags_and_help_all_the_rest() -> None:
    short, long = shoal("serve", "--help"), shoal("serve", "--help-all")
    assert short.returncode == long.returncode == 0
    for text in (short.stdout, long.stdout):
        assert "--max-model-len" in text and "--api-key" in text and "Scheduling" in text
    assert "--root-path" not in short.stdout and "--root-path" in long.stdout
    assert "--help-all" in short.stdout


def test_help_about_a_word_and_all_help_as_vllm_writes_it() -> None:
    memory = shoal("serve", "--help=memory").stdout
    assert "--block-size" in memory and "--port" not in memory
    assert shoal("serve", "--help=all").stdout == shoal("serve", "--help-all").stdout


def test_the_commands() -> None:
    listed = shoal("--help").stdout
    served = ("serve", "ps", "logs", "stop", "pull", "ls", "completion")
    assert all(name in listed for name in (*served, "chat", "complete", "bench", "version"))


def test_a_wrong_flag_is_one_line_and_code_2() -> None:
    done = shoal("serve", "--max-model-ln", "1")
    assert done.returncode == 2
    assert done.stderr == "error: unknown flag --max-model-ln: did you mean --max-model-len?\n"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--port", "x"), "--port is 'x'; expected a whole number"),
        (("-tp", "0"), "--tensor-parallel-size must be at least 1, got 0"),
        (("--max-model-len=1x",), "--max-model-len is '1x'; expected a whole number"),
        (("--gpu-memory-utilization", "9"), "at most 1, got 9"),
        (("-q", "awq"), "`--quantization awq` cannot be kept"),
    ],
)
def test_a_bad_value_is_one_line_and_code_2(args: tuple[str, ...], said: str) -> None:
    done = shoal("serve", *args)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and said in line


@pytest.mark.parametrize("switch", ["flag", "environment"])
def test_a_traceback_only_when_asked_for(switch: str) -> None:
    if switch == "flag":
        done = shoal("serve", "--port", "x", "--debug")
    else:
        done = shoal("serve", "--port", "x", SHOAL_DEBUG="1")
    assert done.returncode != 0
    assert "Traceback" in done.stderr and "ConfigError" in done.stderr


def test_the_command_imports_neither_torch_nor_ray() -> None:
    code = "import json, sys, shoal.cluster.cli; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout))
    assert not loaded & {"torch", "ray", "transformers", "fastapi", "aiohttp"}
