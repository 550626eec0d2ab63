"""The Dockerfiles, read; the script that their containers run, run."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import shoal

from .judges import DEPLOY, ROOT, builds_from

FILES = sorted((DEPLOY / "docker").glob("Dockerfile.*"))
SCRIPT = DEPLOY / "docker" / "entrypoint.sh"
KNOWN = (
    *("FROM", "ARG", "RUN", "ENV", "COPY", "VOLUME", "EXPOSE", "USER", "WORKDIR", "LABEL"),
    *("HEALTHCHECK", "ENTRYPOINT", "CMD"),
)


class Instruction(NamedTuple):
    """One instruction of a Dockerfile and what follows it, on one line."""

    name: str
    rest: str


def instructions(text: str) -> list[Instruction]:
    """What a Dockerfile says. Fails for an instruction that there is not."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    found = []
    for line in filter(None, map(str.strip, joined.splitlines())):
        name, _, rest = line.partition(" ")
        assert name in KNOWN and rest, f"not an instruction: {line}"
        found.append(Instruction(name, rest.strip()))
    return found


def stages(path: Path) -> list[list[Instruction]]:
    """The instructions of each stage, beginning with its FROM."""
    found: list[list[Instruction]] = []
    for one in instructions(path.read_text()):
        if one.name == "FROM":
            found.append([])
        found[-1].append(one)
    return found


def copied(stage: list[Instruction]) -> list[str]:
    """What a stage copies out of the tree."""
    found = []
    for one in stage:
        words = [w for w in one.rest.split() if not w.startswith("--chmod")]
        if one.name == "COPY" and not words[0].startswith("--from="):
            found += words[:-1]
    return found


each_file = pytest.mark.parametrize("path", FILES, ids=lambda p: p.suffix[1:])


@each_file
def test_what_is_copied_is_there_and_enough(path: Path) -> None:
    build, final = stages(path)
    assert all((ROOT / name).exists() for name in copied(build) + copied(final))
    assert builds_from(frozenset(copied(build)))
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line[0] == "!"}
    assert {*copied(build), *copied(final)} == allowed
    source = re.match(r"FROM (\S+) AS (\w+)$", f"FROM {build[0].rest}")
    assert source and any(i.rest.startswith(f"--from={source[2]} ") for i in final)


@each_file
def test_it_runs_as_a_user_and_says_how_it_is(path: Path) -> None:
    _, final = stages(path)
    said = {one.name: one.rest for one in final}
    (making,) = [one.rest for one in final if one.name == "RUN" and "useradd" in one.rest]
    assert f"--uid 1000 --create-home {said['USER']}" in making
    assert said["VOLUME"] == "/weights" and "/weights" in making
    assert said["EXPOSE"] == "8000" and "PORT=8000" in said["ENV"]
    assert "$PORT/health" in said["HEALTHCHECK"]
    tini, _, script = json.loads(said["ENTRYPOINT"])
    (installing,) = [
        one.rest for one in final if one.name == "RUN" and "apt-get install" in one.rest
    ]
    assert {tini, "wget"} <= set(installing.split()) and script == SCRIPT.name
    after = [one.name for one in final]
    assert "RUN" not in after[after.index("USER") :]


@each_file
def test_shell_commands_are_shell(path: Path) -> None:
    for one in instructions(path.read_text()):
        if one.name == "RUN":
            subprocess.run(["sh", "-n", "-c", one.rest], check=True)


def test_the_version_in_the_readme_and_the_files_is_this_one() -> None:
    for path in (*FILES, *DEPLOY.rglob("*.yaml"), *DEPLOY.rglob("README.md")):
        for tag in re.findall(r"shoal:(\d[\w.]*)-(?:cpu|cuda)", path.read_text()):
            assert tag == shoal.__version__, path


@pytest.fixture
def container(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the script as a container would, with `shoal` and others that say their arguments.

    What a configuration comes to, `shoal` says itself.
    """
    programs = tmp_path / "bin"
    programs.mkdir()
    real = f'case "$*" in *--print-config) exec {sys.executable} -m shoal "$@" ;; esac'
    for name, first in (("shoal", real), ("ray", ":"), ("serve", ":")):
        (programs / name).write_text(f'#!/bin/sh\n{first}\necho {name} "$@"\n')
    (programs / "df").write_text(
        "#!/bin/sh\necho Filesystem 1024-blocks Used\necho shm ${SHM_KB:-1048576} 0\n"
    )
    for path in programs.iterdir():
        path.chmod(0o755)

    def run(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", str(SCRIPT), *args],
            capture_output=True,
            text=True,
            env={
                "PATH": f"{programs}:{os.environ['PATH']}",
                "HF_HOME": f"{tmp_path}/huggingface",
                "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
                **env,
            },
        )

    return run


Container = Callable[..., "subprocess.CompletedProcess[str]"]


def test_the_script_is_shell() -> None:
    subprocess.run(["sh", "-n", str(SCRIPT)], check=True)
    assert os.access(SCRIPT, os.X_OK)


def test_arguments_are_those_of_serve(container: Container) -> None:
    done = container("--model", "Qwen/Qwen3-0.6B", "--max-model-len", "8k")
    expected = "shoal serve --host 0.0.0.0 --port 8000 --model Qwen/Qwen3-0.6B --max-model-len 8k"
    assert (done.stdout.strip(), done.stderr, done.returncode) == (expected, "", 0)
    assert "--port 9000" in container(PORT="9000").stdout


def test_serve_takes_them_and_what_is_given_wins(container: Container) -> None:
    from shoal.cluster.resolve import configure

    words = shlex.split(container("--model", "a/b", "--port", "9000").stdout)
    assert words[:2] == ["shoal", "serve"]
    config = configure(words[2:], {})
    assert (config.host, config.port, config.models[0].engine.model) == ("0.0.0.0", 9000, "a/b")


@pytest.mark.parametrize("line", ["ray start --head --block", "shoal ls", "serve deploy x.yaml"])
def test_a_command_by_name_runs_as_it_is(container: Container, line: str) -> None:
    assert container(*line.split()).stdout.strip() == line


BEGIN_RAY = ("", "--model m", "--no-local", "shoal serve m", "ray start --head", "serve run a:b")
NO_RAY = (
    *("--local", "--model m --local true", "shoal serve --local", "--help", "--print-config"),
    *("--explain", "shoal --version", "shoal ls", "shoal pull m", "shoal chat", "shoal k8s c.yaml"),
    *("shoal bench serve", "serve deploy c.yaml", "ray status", "sh -c :", "--unknown"),
)


@pytest.mark.parametrize("line", BEGIN_RAY)
def test_too_little_shared_memory_is_refused(container: Container, line: str) -> None:
    done = container(*line.split(), SHM_KB="65536")
    assert done.returncode == 2 and not done.stdout
    assert "64 MB" in done.stderr and "--shm-size" in done.stderr


@pytest.mark.parametrize("line", NO_RAY)
def test_it_is_not_asked_for_where_no_ray_begins(container: Container, line: str) -> None:
    done = container(*line.split(), SHM_KB="65536")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("text", "code"), [("local: true", 0), ("model: m\nlocal: yes", 0), ("model: m", 2)]
)
def test_a_configuration_file_says_whether_it_is_needed(
    container: Container, tmp_path: Path, text: str, code: int
) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(text)
    for args in (("--config", str(file)), ("shoal", "serve", f"--config={file}")):
        assert container(*args, SHM_KB="65536").returncode == code
    assert container("--config", str(file)).returncode == 0


def test_a_cache_that_cannot_be_written_is_told(container: Container) -> None:
    done = container(HF_HOME="/proc/none/huggingface")
    assert done.returncode == 0 and "chown 1000" in done.stderr


def test_faults_are_found() -> None:
    with pytest.raises(AssertionError, match="RNU"):
        instructions("FROM x\nRNU echo\n")
