"""Set-up on machines that lack something, played with stand-ins for Python and pip."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
X86_LINUX = sys.platform == "linux" and platform.machine() == "x86_64"
TOOLS = (
    *("sh", "make", "dirname", "grep", "sed", "awk", "tail", "uname", "mkdir", "ln", "rm", "find"),
    *("touch", "chmod", "cp", "cat", "env", "nvidia-smi"),
)

DESCRIBED = ("Makefile", "pyproject.toml", "setup.py", "constraints.txt", "deploy/setup.sh")

# Stands in for an interpreter: answers what setup.sh asks, and writes down every call of pip.
INTERPRETER = """#!/bin/sh
case "$*" in
    *version_info*) echo {version} ;;
    *"import venv"*) exit {venv_missing} ;;
    *"-m venv"*)
        mkdir -p .venv/bin
        cp "$0" .venv/bin/python
        for tool in shoal pytest; do
            printf '#!/bin/sh\\necho "$(basename "$0")" "$@"\\n' >.venv/bin/$tool
            chmod +x .venv/bin/$tool
        done ;;
    *"pip --version"*) ;;
    *"pip install"*) echo "$*" >>pip-calls; {pip} ;;
    *"import bindings"*) echo "{absence}" ;;
    *"import sys, torch"*) exit {cuda_torch} ;;
    *"import torch"*) grep -q torch pip-calls 2>/dev/null ;;
    *) echo "python $*" ;;
esac
"""


class Machine:
    """A folder with the project's set-up, and a PATH that holds only what is put there."""

    def __init__(self, folder: Path) -> None:
        self.bin, self.tree = folder / "bin", folder / "flock"
        self.bin.mkdir(parents=True)
        for name in DESCRIBED:
            (self.tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, self.tree / name)
        for tool in (*TOOLS, "basename"):
            found = shutil.which(tool)
            if found and tool != "nvidia-smi":
                (self.bin / tool).symlink_to(found)

    def put(self, name: str, text: str) -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def python(
        self,
        version: str,
        *,
        name: str = "python3",
        venv: bool = True,
        cuda_torch: bool = False,
        pip: str = "true",
        absence: str = "",
    ) -> None:
        text = INTERPRETER.format(
            version=version,
            venv_missing=int(not venv),
            cuda_torch=int(cuda_torch),
            pip=pip,
            absence=absence,
        )
        self.put(name, text)

    def make(self, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["make", *args],
            cwd=self.tree,
            env={"PATH": str(self.bin), "HOME": os.environ.get("HOME", "/")} | env,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def refuses(self, *args: str, **env: str) -> str:
        done = self.make(*args, **env)
        assert done.returncode != 0, done.stdout + done.stderr
        return done.stderr

    def pip_calls(self) -> list[str]:
        path = self.tree / "pip-calls"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_it_installs_torch_first_then_serves(machine: Machine) -> None:
    machine.python("3.12")
    done = machine.make("serve", "ARGS=MODEL --port 9000")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "shoal serve MODEL --port 9000"
    torch, shoal = machine.pip_calls()
    assert torch.endswith("install --disable-pip-version-check -c constraints.txt torch")
    assert shoal.endswith("-c constraints.txt -e .")
    assert (machine.tree / ".venv" / "typing" / "shoal").resolve() == machine.tree


def test_the_second_time_it_starts_at_once(machine: Machine) -> None:
    machine.python("3.12")
    machine.make("serve")
    before = machine.pip_calls()
    done = machine.make("serve")
    assert done.stdout.strip() == "shoal serve"
    assert done.stderr == ""
    assert machine.pip_calls() == before


def test_a_changed_pyproject_installs_again(machine: Machine) -> None:
    machine.python("3.12")
    machine.make("serve")
    stamp = (machine.tree / ".venv" / ".serve").stat().st_mtime
    os.utime(machine.tree / "pyproject.toml", (stamp + 5, stamp + 5))
    machine.make("serve")
    assert len(machine.pip_calls()) == 4


def test_tests_add_their_extra_and_name_what_to_run(machine: Machine) -> None:
    machine.python("3.11")
    done = machine.make("test", "ARGS=tests/engine -k depth")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "python -m pytest tests/engine -k depth"
    assert machine.pip_calls()[-1].endswith("-e .[test]")


def test_an_old_python_is_named_with_the_way_out(machine: Machine) -> None:
    machine.python("3.9")
    said = machine.refuses("serve")
    assert "python3 is 3.9" in said
    assert "3.11 to 3.13" in said
    assert "make serve PYTHON=" in said
    assert not (machine.tree / ".venv").exists()


def test_a_later_python_of_the_right_age_is_found(machine: Machine) -> None:
    machine.python("3.9")
    machine.python("3.12", name="python3.12")
    assert machine.make("serve").returncode == 0


def test_a_python_that_does_not_run_is_passed_over(machine: Machine) -> None:
    machine.put("python3", "#!/bin/sh\nexit 127\n")
    machine.python("3.13", name="python3.13")
    assert machine.make("serve").returncode == 0


def test_a_python_too_new_may_be_tried(machine: Machine) -> None:
    machine.python("3.14")
    assert "make serve PYTHON=python3" in machine.refuses("serve")
    assert machine.make("serve", "PYTHON=python3").returncode == 0


def test_no_python_at_all(machine: Machine) -> None:
    assert "no Python was found" in machine.refuses("serve")


def test_a_python_asked_for_must_run_and_be_in_range(machine: Machine) -> None:
    machine.python("3.12")
    machine.python("3.8", name="python3.8")
    assert "does not run" in machine.refuses("serve", "PYTHON=nowhere")
    assert "is Python 3.8" in machine.refuses("serve", "PYTHON=python3.8")


def test_a_missing_venv_module_is_named(machine: Machine) -> None:
    machine.python("3.11", venv=False)
    machine.put("apt-get", "#!/bin/sh\n")
    said = machine.refuses("serve")
    assert "no venv module" in said
    assert "sudo apt-get install python3.11-venv" in said


def test_the_index_of_torch_is_passed_on(machine: Machine) -> None:
    machine.python("3.12")
    machine.make("serve", TORCH_INDEX_URL="https://example.org/cpu")
    torch, shoal = machine.pip_calls()
    assert "--index-url https://example.org/cpu torch" in torch
    assert "--index-url" not in shoal


def test_a_cpu_torch_on_a_gpu_machine_is_named(machine: Machine) -> None:
    machine.put("nvidia-smi", "#!/bin/sh\necho 'GPU 0: something'\n")
    machine.python("3.12")
    done = machine.make("serve")
    assert done.returncode == 0
    assert "the GPU would stay idle" in done.stderr
    assert "TORCH_INDEX_URL=" in done.stderr


def test_a_cuda_torch_on_a_gpu_machine_is_fine(machine: Machine) -> None:
    machine.put("nvidia-smi", "#!/bin/sh\necho 'GPU 0: something'\n")
    machine.python("3.12", cuda_torch=True)
    assert "idle" not in machine.make("serve").stderr


def test_a_machine_without_gpu_hears_of_the_small_torch(machine: Machine) -> None:
    machine.python("3.12")
    assert "TORCH_INDEX_URL=" in machine.make("serve").stderr


@pytest.mark.skipif(not X86_LINUX, reason="the native CPU ops are for x86-64 Linux")
def test_a_machine_without_a_compiler_goes_on_and_hears_how_to_bring_one(machine: Machine) -> None:
    machine.python("3.12")
    machine.put("apt-get", "#!/bin/sh\n")
    done = machine.make("serve")
    assert done.returncode == 0 and done.stdout.strip() == "shoal serve"
    assert "no C++ compiler here: torch's ops serve" in done.stderr
    assert "sudo apt-get install g++" in done.stderr


@pytest.mark.parametrize(
    ("name", "cxx"), [("g++", ""), ("clang++", ""), ("mine", "mine"), ("mine", "mine c++ -m64")]
)
def test_with_a_compiler_nothing_is_said_of_it(machine: Machine, name: str, cxx: str) -> None:
    machine.python("3.12")
    machine.put(name, "#!/bin/sh\n")
    assert "compiler" not in machine.make("serve", CXX=cxx).stderr


def test_native_ops_that_did_not_build_are_named(machine: Machine) -> None:
    machine.python("3.12", absence="they were not built")
    said = machine.make("serve").stderr
    assert "torch's ops serve CPUs, slower than shoal's own: they were not built" in said


def test_changed_sources_of_the_native_ops_install_again(machine: Machine) -> None:
    machine.python("3.12")
    source = machine.tree / "kernels" / "cpu" / "linear.inc"
    source.parent.mkdir(parents=True)
    source.touch()
    machine.make("serve")
    stamp = (machine.tree / ".venv" / ".serve").stat().st_mtime
    os.utime(source, (stamp + 5, stamp + 5))
    machine.make("serve")
    assert len(machine.pip_calls()) == 4


def test_a_failing_pip_stops_it_with_its_last_words(machine: Machine) -> None:
    machine.python("3.12", pip="echo 'ERROR: no such host'; exit 1")
    said = machine.refuses("serve")
    assert "ERROR: no such host" in said
    assert ".venv/setup.log" in said
    assert not (machine.tree / ".venv" / ".serve").exists()


def test_large_downloads_show(machine: Machine) -> None:
    machine.python("3.12", pip="echo '  Downloading torch-1.whl (200.0 MB)'; echo Collecting")
    said = machine.make("serve").stderr
    assert "Downloading torch-1.whl (200.0 MB)" in said
    assert "Collecting" not in said


def test_an_environment_whose_python_is_gone_is_made_anew(machine: Machine) -> None:
    machine.python("3.12")
    machine.make("serve")
    (machine.tree / ".venv" / "bin" / "python").write_text("#!/bin/sh\nexit 127\n")
    (machine.tree / ".venv" / ".serve").unlink()
    done = machine.make("serve")
    assert done.returncode == 0, done.stderr
    assert "making it anew" in done.stderr


def test_help_lists_every_public_target(machine: Machine) -> None:
    done = machine.make("help")
    for target in ("serve", "test", "check", "clean"):
        assert f"make {target} " in done.stdout
