"""What is installed: the packages listed, the files they hold, the same from every road."""

from __future__ import annotations

import ast
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Mapping
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from shoal.cluster.ports import free_port
from shoal.kernels.cpu.bindings import absence

ROOT = Path(__file__).resolve().parent.parent
FLOORS = ("cluster", "engine", "kernels")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


X86_LINUX = sys.platform == "linux" and platform.machine() == "x86_64"
"""Where the native CPU ops are built, given a compiler; CI has one."""

PLACES = PROJECT["tool"]["setuptools"]["package-dir"]


def installed_at(path: Path) -> Path:
    """Where a file of the tree comes to lie: below the package, or where its folder is mapped."""
    for package, folder in sorted(PLACES.items(), reverse=True):
        if folder != "." and (ROOT / folder) in path.parents:
            return Path(*package.split("."), path.relative_to(ROOT / folder))
    return "shoal" / path.relative_to(ROOT)


def source_folders() -> set[str]:
    files = [p for floor in FLOORS for p in (ROOT / floor).rglob("*.py")]
    return {".".join(installed_at(p).parent.parts) for p in files}


def test_the_packages_listed_are_those_of_the_tree() -> None:
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == {"shoal", *source_folders()}


def test_the_version_is_the_same_in_both_places() -> None:
    import shoal

    assert PROJECT["project"]["version"] == shoal.__version__


def canonical(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[\s\[<>=!~;]", requirement)[0]).lower()


def third_party(folder: Path) -> Mapping[str, str]:
    """Top-level modules imported there that are neither Python's nor ours, and one who does."""
    found = {}
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [a.name for a in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            for name in names:
                top = name.split(".")[0]
                if top not in sys.stdlib_module_names and top != "shoal":
                    found[top] = f"{path.relative_to(ROOT)}:{node.lineno}"
    return found


def undeclared(folders: tuple[str, ...], requirements: list[str]) -> Mapping[str, str]:
    """Third-party modules imported in `folders` that no requirement brings, and who does."""
    declared = {canonical(r) for r in requirements}
    homes = packages_distributions()
    beside = {"tests"} | {path.stem for folder in folders for path in (ROOT / folder).rglob("*.py")}
    return {
        module: where
        for folder in folders
        for module, where in third_party(ROOT / folder).items()
        if module not in beside
        and not {canonical(d) for d in homes.get(module, [module])} & declared
    }


def test_every_import_is_declared() -> None:
    project = PROJECT["project"]
    extras = project["optional-dependencies"]
    runtime = [r for name, lines in extras.items() if name != "test" for r in lines]
    # triton comes with the torch builds that can use it, and must be of the version torch chose.
    assert undeclared(FLOORS, [*project["dependencies"], *runtime, "triton"]) == {}


def test_what_the_tests_import_is_declared_too() -> None:
    project = PROJECT["project"]
    lines = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    for needs in (
        *ROOT.glob("tests/cluster/clients/needs/*"),
        *ROOT.glob("benchmarks/peers/needs/*"),
    ):
        lines += [line for line in needs.read_text().splitlines() if line[:1] not in ("", "#")]
    assert undeclared(("tests", "configs", "benchmarks"), lines) == {}


def test_nothing_is_declared_in_vain() -> None:
    homes = packages_distributions()
    used = {
        canonical(dist)
        for floor in FLOORS
        for module in third_party(ROOT / floor)
        for dist in homes.get(module, [module])
    }
    assert {canonical(r) for r in PROJECT["project"]["dependencies"]} - used == set()


def test_tools_are_pinned_and_libraries_are_not() -> None:
    assert all("==" in r for r in PROJECT["project"]["optional-dependencies"]["test"])
    capped = [r for r in PROJECT["project"]["dependencies"] if "<" in r or "==" in r]
    assert capped == ["transformers>=5,<6"]


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree in a folder that is not called shoal."""
    folder = tmp_path_factory.mktemp("copy") / "flock"
    names = (".git", ".venv", "*.so", "build", "dist", "*.egg-info", "__pycache__", ".*_cache")
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*names), symlinks=True)
    return folder


def python(code: str, *, cwd: Path, interpreter: str = sys.executable, **env: str) -> str:
    """Run `code` without this test run's own way to find shoal."""
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [interpreter, "-c", code],
        cwd=cwd,
        env=clean | env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def pip(*args: str, cwd: Path, interpreter: str = sys.executable) -> None:
    done = subprocess.run(
        [interpreter, "-m", "pip", "--disable-pip-version-check", "--no-input", *args],
        cwd=cwd,
        env=os.environ | {"CXX": str(ROOT / "tests" / "hasty_cxx.sh")},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(elsewhere: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    # What lies about in a lived-in folder must stay out of the wheel.
    for stray in (".venv/typing/stray.py", "benchmarks/stray.py", "stray/__init__.py"):
        (elsewhere / stray).parent.mkdir(parents=True, exist_ok=True)
        (elsewhere / stray).touch()
    pip("wheel", "--no-deps", "--no-build-isolation", "-w", str(out), ".", cwd=elsewhere)
    (built,) = out.glob("shoal-*.whl")
    return built


def expected_files() -> set[str]:
    python_files = {p for f in FLOORS for p in (ROOT / f).rglob("*.py")}
    python_files |= set(ROOT.glob("*.py")) - {ROOT / "setup.py"}
    data = {p for f in ("configs", "cluster/static") for p in (ROOT / f).rglob("*") if p.is_file()}
    data |= {p for end in ("cpp", "h", "inc") for p in (ROOT / "kernels" / "cpu").glob(f"*.{end}")}
    names = {str(installed_at(p)) for p in python_files | data}
    native = {"shoal/kernels/cpu/native.so"} if X86_LINUX else set()
    return {n for n in names if "__pycache__" not in n} | {"shoal/py.typed"} | native


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {n for n in archive.namelist() if not n.endswith("/")}
    assert {n for n in names if ".dist-info/" not in n} == expected_files()
    assert any(n.endswith("licenses/LICENSE") for n in names)
    tag = "py3-none-linux_x86_64" if X86_LINUX else "py3-none-any"
    assert wheel.name.endswith(f"-{tag}.whl")


PROBE = f"""
X86_LINUX = {X86_LINUX}
import shoal.entrypoints.openai.api_server
import pathlib, shoal, shoal.engine.request, shoal.kernels.ops, transformers.modeling_utils
from shoal.cluster.cli import main
from shoal.kernels.cpu.bindings import absence
folder = pathlib.Path(shoal.__file__).parent
assert (folder / "py.typed").is_file()
assert (folder / "configs" / "tiny" / "model.safetensors").is_file()
assert list((folder / "configs").glob("*.yaml"))
assert absence() is None or not X86_LINUX, absence()
print(folder.resolve())
"""


def test_a_wheel_installed_elsewhere_is_whole(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    pip("install", "--no-deps", "--target", str(target), str(wheel), cwd=tmp_path)
    assert python(PROBE, cwd=tmp_path, PYTHONPATH=str(target)) == str((target / "shoal").resolve())
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [str(target / "bin" / "shoal"), "--version"],
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert PROJECT["project"]["version"] in done.stdout


@pytest.mark.skipif(not X86_LINUX, reason="the native CPU ops are for x86-64 Linux")
def test_what_was_installed_without_a_compiler_names_a_command_that_builds_it(
    wheel: Path, tmp_path: Path
) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    (tmp_path / "shoal" / "kernels" / "cpu" / "native.so").unlink()
    absent = "from shoal.kernels.cpu.bindings import absence; print(absence())"
    why, _, command = python(absent, cwd=tmp_path, PYTHONPATH=str(tmp_path)).partition(": python ")
    assert why == "they were not built"
    subprocess.run(
        [sys.executable, *shlex.split(command)],
        cwd=tmp_path,
        env=os.environ | {"CXX": str(ROOT / "tests" / "hasty_cxx.sh")},
        check=True,
        timeout=600,
    )
    assert python(absent, cwd=tmp_path, PYTHONPATH=str(tmp_path)) == "None"


def test_an_editable_install_works_from_any_folder(elsewhere: Path, tmp_path: Path) -> None:
    interpreter = bare_venv(tmp_path / "env")
    pip(
        *("install", "--no-deps", "--no-build-isolation", "--no-index", "-e", str(elsewhere)),
        cwd=tmp_path,
        interpreter=interpreter,
    )
    for cwd in (tmp_path, elsewhere, ROOT / "engine" / "model"):
        assert python(PROBE, cwd=cwd, interpreter=interpreter) == str(elsewhere)
    done = subprocess.run(
        [
            interpreter,
            "-m",
            "shoal.entrypoints.openai.api_server",
            "--model",
            "/no/model",
            "--local",
            "--port",
            str(free_port()),
        ],
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 3 and "error: no folder '/no/model'" in done.stderr


def bare_venv(folder: Path) -> str:
    """An environment that sees the libraries of this one, but not how it finds shoal."""
    venv.create(folder, with_pip=False, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return str(folder / "bin" / "python")


@pytest.mark.skipif(not X86_LINUX, reason="the native CPU ops are for x86-64 Linux")
def test_the_native_ops_were_built_of_these_sources() -> None:
    assert absence() is None


def test_without_a_compiler_torch_serves(elsewhere: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bin"
    bare.mkdir()
    done = subprocess.run(
        [sys.executable, "setup.py", "--version", "build_ext", "--build-lib", str(tmp_path)],
        cwd=elsewhere,
        env=os.environ | {"PATH": str(bare), "CXX": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    if X86_LINUX:
        assert "no native CPU ops, torch's serve: no C++ compiler was found" in done.stderr
    assert not list(tmp_path.rglob("native.so"))


def test_a_source_distribution_holds_what_a_wheel_is_made_of(
    elsewhere: Path, tmp_path: Path
) -> None:
    subprocess.run(
        [sys.executable, "setup.py", "-q", "sdist", "-d", str(tmp_path)], cwd=elsewhere, check=True
    )
    (packed,) = tmp_path.glob("shoal-*.tar.gz")
    with tarfile.open(packed) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    sources = {f"kernels/cpu/{p.name}" for p in (ROOT / "kernels" / "cpu").iterdir() if p.is_file()}
    assert {n for n in sources if not n.endswith(".so")} <= names
    assert {"setup.py", "pyproject.toml", "configs/tiny/model.safetensors"} <= names


def test_it_runs_from_a_clone_of_another_name(elsewhere: Path) -> None:
    link = elsewhere / ".venv" / "typing" / "shoal"
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to("../..")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "tests/test_layout.py",
            "-k",
            "import",
        ],
        cwd=elsewhere,
        env=os.environ | {"PYTHONPATH": str(link.parent)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
