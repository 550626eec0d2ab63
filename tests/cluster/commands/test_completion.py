"""What shells are told when somebody presses Tab."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ASK = "import sys; sys.argv = ['shoal']; from shoal.cluster.cli import main; main()"


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """A hub cache with two models, and a `shoal` on the path."""
    for name in ("models--Qwen--Qwen3-0.6B", "models--gpt2", "datasets--a--b"):
        (tmp_path / "hub" / name).mkdir(parents=True)
    program = tmp_path / "bin" / "shoal"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m shoal "$@"\n')
    program.chmod(0o755)
    path = f"{program.parent}:{os.environ['PATH']}"
    return {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "PATH": path}


@pytest.mark.parametrize(
    ("shell", "line", "words"),
    [
        ("bash", "shoal ser", ["serve"]),
        ("zsh", "shoal ser", ["serve"]),
        ("fish", "shoal ser", ["serve"]),
        ("bash", "shoal serve --max-m", ["--max-model-len"]),
        ("zsh", "shoal serve --deta", ["--detach"]),
        ("fish", "shoal serve Qw", ["Qwen/Qwen3-0.6B"]),
        ("bash", "shoal serve --port 9000 gp", ["gpt2"]),
        ("zsh", "shoal serve shoal", ["shoal-tiny"]),
        ("fish", "shoal logs --fol", ["--follow"]),
        ("bash", "shoal bench serve --num-p", ["--num-prompts"]),
    ],
)
def test_the_answer_to_a_shell(
    environ: dict[str, str], shell: str, line: str, words: list[str]
) -> None:
    asked = {
        "_SHOAL_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": line.replace(" ", "\n"),
        "COMP_CWORD": str(line.count(" ")),
        "_TYPER_COMPLETE_ARGS": line,
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    command = [sys.executable, "-c", ASK]
    done = subprocess.run(command, capture_output=True, text=True, env=environ | asked)
    found = done.stdout.splitlines()
    if shell == "zsh":
        assert all(f'"{word}"' in done.stdout for word in words)
    else:
        assert [word.split("\t")[0] for word in found] == words


def test_asking_imports_no_torch_and_no_ray(environ: dict[str, str]) -> None:
    asked = {"_SHOAL_COMPLETE": "complete_bash", "COMP_WORDS": "shoal\nserve\n", "COMP_CWORD": "2"}
    watched = (
        "import atexit, json, sys; "
        "atexit.register(lambda: print(json.dumps(sorted(sys.modules)), file=sys.stderr)); "
    )
    command = [sys.executable, "-c", watched + ASK]
    done = subprocess.run(command, capture_output=True, text=True, env=environ | asked)
    assert "shoal-tiny" in done.stdout
    loaded = json.loads(done.stderr)
    assert not {"torch", "ray", "transformers", "fastapi"} & set(loaded)


def test_bash_itself(environ: dict[str, str]) -> None:
    script = """
    eval "$(shoal completion bash)"
    complete -p shoal
    for words in "shoal serve Qw" "shoal serve gpt2 --tensor-par" "shoal sto"; do
        COMP_WORDS=($words); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMP_LINE=$words
        _shoal_completion shoal "${COMP_WORDS[COMP_CWORD]}" ""
        echo "${COMPREPLY[@]}"
    done
    """
    done = subprocess.run(
        ["bash", "--norc", "-c", script], capture_output=True, text=True, env=environ, timeout=120
    )
    registered, *found = done.stdout.splitlines()
    assert registered == "complete -o default -F _shoal_completion shoal", done.stderr
    assert found == ["Qwen/Qwen3-0.6B", "--tensor-parallel-size", "stop"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script(environ: dict[str, str], shell: str) -> None:
    done = subprocess.run(
        ["shoal", "completion", shell], capture_output=True, text=True, env=environ
    )
    assert done.returncode == 0 and "_SHOAL_COMPLETE" in done.stdout
    if (program := shutil.which(shell)) is not None:
        read = [program, "-n"] if shell != "fish" else [program, "--no-execute"]
        subprocess.run(read, input=done.stdout, text=True, check=True)


def test_another_shell_is_refused(environ: dict[str, str]) -> None:
    done = subprocess.run(["shoal", "completion", "tcsh"], capture_output=True, env=environ)
    assert done.returncode == 2
