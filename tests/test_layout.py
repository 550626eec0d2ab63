"""The floors: who may import whom, what a file may be called, how long it may be."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = ("cluster", "engine", "kernels")
HALLWAY = (
    "engine/errors.py",
    "engine/bounds.py",
    "engine/request.py",
    "engine/config.py",
    "engine/sequence.py",
    "engine/plan.py",
    "engine/keys.py",
    "engine/holdings.py",
)
LONGEST_FILE = 450
# The files that may ask what device they are on.
DEVICE_ROOMS = (
    "kernels/choice.py",
    "engine/worker/device.py",
    "engine/worker/graphs.py",
    "engine/worker/cuda_graphs.py",
)


def tracked(*suffixes: str) -> list[str]:
    """Files of the repository, as git sees them; without git, as the folders hold them."""
    done = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if done.returncode == 0:
        names = [n for n in done.stdout.splitlines() if (ROOT / n).is_file()]
    else:
        names = [str(p.relative_to(ROOT)) for p in ROOT.rglob("*") if p.is_file()]
        names = [n for n in names if not re.search(r"(^|/)(\.venv|\.git|build|__pycache__)/", n)]
    return sorted(n for n in names if n.endswith(suffixes or ("",)))


@cache
def package_files() -> tuple[str, ...]:
    """Every Python file of the package itself."""
    return tuple(n for n in tracked(".py") if "/" not in n or n.split("/")[0] in FLOORS)


@cache
def parsed(name: str) -> ast.Module:
    return ast.parse((ROOT / name).read_text(), name)


@cache
def imports(name: str) -> tuple[tuple[int, str], ...]:
    """Line and absolute dotted name of all that a file imports, inside functions too.

    A relative import comes out as shoal.<...>.
    """
    package = ["shoal", *Path(name).parent.parts]
    found = []
    for node in ast.walk(parsed(name)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*above, *([node.module] if node.module else [])])
            found += [(node.lineno, f"{stem}.{alias.name}") for alias in node.names]
        elif isinstance(node, ast.Call) and _called(node) in ("import_module", "__import__"):
            found += [(node.lineno, str(a.value)) for a in node.args if isinstance(a, ast.Constant)]
    return tuple(found)


def _called(node: ast.Call) -> str:
    return ast.unparse(node.func).rsplit(".", 1)[-1]


def offences(files: tuple[str, ...], forbidden: tuple[str, ...]) -> list[str]:
    """Imports in `files` of a forbidden module or anything inside it."""
    return [
        f"{name}:{line} imports {what}"
        for name in files
        for line, what in imports(name)
        if any(what == f or what.startswith(f"{f}.") for f in forbidden)
    ]


def under(*folders: str) -> tuple[str, ...]:
    return tuple(n for n in package_files() if n.startswith(folders))


@pytest.mark.parametrize(
    ("files", "forbidden"),
    [
        pytest.param(
            (*under("engine/core/", "engine/features/"), *HALLWAY),
            ("torch", "triton", "numpy", "transformers", "shoal.kernels"),
            id="the host wing and the hallway are plain Python",
        ),
        pytest.param(
            (*under("engine/core/", "engine/features/"), *HALLWAY),
            ("time", "socket", "threading", "asyncio", "subprocess", "random"),
            id="the host wing has no clock, no thread and no IO",
        ),
        pytest.param(
            under("engine/", "kernels/"),
            ("ray", "fastapi", "starlette", "uvicorn", "pydantic", "typer", "prometheus_client"),
            id="the server's libraries stay in cluster",
        ),
        pytest.param(under("engine/"), ("shoal.cluster",), id="engine never imports cluster"),
        pytest.param(
            under("cluster/"),
            ("torch", "triton", "safetensors", "shoal.kernels"),
            id="cluster does no arithmetic",
        ),
        pytest.param(
            under("cluster/"),
            ("shoal.engine.core", "shoal.engine.features"),
            id="cluster never reaches into the scheduler",
        ),
        pytest.param(under("kernels/"), ("shoal",), id="kernels import nothing of shoal's others"),
        pytest.param(
            under("engine/model/", "engine/worker/"),
            ("shoal.engine.core", "shoal.engine.features", "shoal.engine.loop"),
            id="the device wing never imports the scheduler",
        ),
        pytest.param(
            under("engine/core/", "engine/features/"),
            ("shoal.engine.model", "shoal.engine.worker"),
            id="the host wing never imports the device wing",
        ),
    ],
)
def test_floors(files: tuple[str, ...], forbidden: tuple[str, ...]) -> None:
    assert files
    if forbidden == ("shoal",):
        found = [o for o in offences(files, forbidden) if "imports shoal.kernels" not in o]
    else:
        found = offences(files, forbidden)
    assert found == []


def test_triton_lives_under_kernels_gpu() -> None:
    files = tuple(n for n in package_files() if not n.startswith("kernels/gpu/"))
    assert offences(files, ("triton",)) == []


def test_pydantic_models_live_in_two_files() -> None:
    allowed = ("cluster/config.py", "cluster/protocol.py")
    names = ("BaseModel", "RootModel", "TypeAdapter", "Field", "dataclasses", "create_model")
    files = tuple(n for n in package_files() if n not in allowed)
    assert offences(files, tuple(f"pydantic.{name}" for name in names)) == []
    assert [f"{n}:{line}" for n in files for line, what in imports(n) if what == "pydantic"] == []


def test_features_never_import_each_other() -> None:
    for name in under("engine/features/"):
        others = [n for n in under("engine/features/") if n != name and "__init__" not in n]
        modules = tuple("shoal." + n.removesuffix(".py").replace("/", ".") for n in others)
        assert offences((name,), modules) == []


def test_only_three_files_ask_for_the_device() -> None:
    asks = re.compile(r"\.is_(cpu|cuda)\b|\b(device|place)\.type\b|\btorch\.cuda\b")
    found = [
        f"{name}:{number}"
        for name in under("engine/", "kernels/", "cluster/")
        if name not in DEVICE_ROOMS and not name.startswith(("kernels/gpu/", "kernels/cpu/"))
        for number, line in enumerate((ROOT / name).read_text().splitlines(), 1)
        if asks.search(line)
    ]
    assert found == []


def test_imports_inside_the_package_are_relative() -> None:
    found = [
        f"{name}:{node.lineno}"
        for name in package_files()
        if "/" in name and not name.startswith("cluster/entrypoints/")  # mapped elsewhere
        for node in ast.walk(parsed(name))
        if (isinstance(node, ast.ImportFrom) and not node.level and _top(node.module) == "shoal")
        or (isinstance(node, ast.Import) and any(_top(a.name) == "shoal" for a in node.names))
    ]
    assert found == []


def _top(module: str | None) -> str:
    return (module or "").split(".")[0]


def test_the_root_has_no_relative_import_at_top_level() -> None:
    tree = parsed("__init__.py")
    found = [n.lineno for n in tree.body if isinstance(n, ast.ImportFrom) and n.level]
    assert found == []


def test_init_files_are_empty_and_kernels_has_none() -> None:
    inits = [n for n in package_files() if n.endswith("/__init__.py")]
    assert [n for n in inits if (ROOT / n).read_text().strip()] == []
    assert [n for n in inits if n.startswith("kernels/")] == []


def test_files_can_be_read_in_one_sitting() -> None:
    long = {
        n: count
        for n in tracked(".py")
        if (count := len((ROOT / n).read_text().splitlines())) > LONGEST_FILE
    }
    assert long == {}


def test_names_do_not_hide_a_library() -> None:
    """A module called after another would shadow it for whoever has the folder on the path."""
    taken = set(sys.stdlib_module_names) | {
        *("torch", "triton", "ray", "transformers", "tokenizers", "safetensors", "numpy"),
        *("fastapi", "starlette", "uvicorn", "pydantic", "msgspec", "typer", "rich", "yaml"),
        *("jinja2", "openai", "pytest", "hypothesis", "aiohttp", "serve", "huggingface_hub"),
    }
    names = {part for n in package_files() for part in Path(n).with_suffix("").parts}
    assert names & taken == set()


def test_names_say_what_a_thing_is() -> None:
    vague = re.compile(r"(Base|Impl|Mixin|Utils?|V\d|Helper)$")
    classes = [
        f"{name}:{node.lineno} {node.name}"
        for name in package_files()
        for node in ast.walk(parsed(name))
        if isinstance(node, ast.ClassDef)
        and (
            vague.search(node.name) or (node.name.endswith("Manager") and node.name != "KVManager")
        )
    ]
    files = [n for n in package_files() if Path(n).stem in ("utils", "helpers", "common", "misc")]
    assert classes + files == []


def test_no_path_of_somebodys_machine() -> None:
    home = re.compile(r"/(home|Users)/[a-z][\w.-]*/|/root/|\b[A-Z]:\\\\Users")
    found = [
        f"{name}:{number} {line.strip()[:80]}"
        for name in tracked(".py", ".md", ".toml", ".yaml", ".yml", ".txt", ".sh", "Makefile")
        if name != "tests/test_layout.py"
        for number, line in enumerate((ROOT / name).read_text().splitlines(), 1)
        if home.search(line)
    ]
    assert found == []


def test_no_todo() -> None:
    note = re.compile(r"#.*\b(TODO|FIXME|XXX|HACK)\b")
    found = [n for n in package_files() if note.search((ROOT / n).read_text())]
    assert found == []


def test_tests_mirror_the_tree() -> None:
    """Every folder of tests/ is a folder of the tree."""
    inside = [Path(n).parts for n in tracked(".py") if n.startswith("tests/")]
    folders = {parts[1] for parts in inside if len(parts) > 2}
    assert [f for f in sorted(folders) if not (ROOT / f).is_dir()] == []


def run(code: str, **options: object) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=280, **options
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


LIGHT = ("shoal", "shoal.cluster.link", "shoal.cluster.cli", "shoal.engine.request")


@pytest.mark.parametrize("module", LIGHT)
def test_light_imports_bring_no_torch(module: str) -> None:
    out = run(f"import sys, {module}; print([m for m in ('torch', 'ray') if m in sys.modules])")
    assert out.strip() == "[]"


@pytest.mark.parametrize("words", [["--help"], ["serve", "--help"], ["version"]])
def test_the_command_line_loads_nothing_heavy(words: list[str]) -> None:
    """A person, or a shell that completes words, waits for what it imports."""
    heavy = ("torch", "transformers", "ray", "numpy", "fastapi", "tokenizers")
    out = run(
        "import sys\n"
        "from shoal.cluster.cli import main\n"
        f"sys.argv[1:] = {words}\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as end:\n"
        "    assert not end.code\n"
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    assert out.splitlines()[-1] == "[]"


def test_serving_without_ray_imports_no_torch_before_it_loads() -> None:
    """The door is open, and OpenMP is told how its threads wait, before torch comes."""
    out = run("import sys, shoal.cluster.local; print('torch' in sys.modules)")
    assert out.strip() == "False"


def test_a_gateway_imports_no_torch() -> None:
    if not (ROOT / "cluster" / "gateway.py").exists():
        pytest.skip("there is no gateway yet")
    out = run("import sys, shoal.cluster.gateway; print('torch' in sys.modules)")
    assert out.strip() == "False"


def test_engine_and_kernels_run_without_the_server() -> None:
    """A GPU box without Ray runs the offline LLM."""
    hide = (
        "import sys\n"
        "class Hide:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('ray', 'fastapi', 'pydantic', 'uvicorn', 'typer'):\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Hide())\n"
    )
    modules = [
        "shoal." + n.removesuffix(".py").replace("/", ".")
        for n in under("engine/", "kernels/")
        if not n.endswith("__init__.py") and not n.startswith("kernels/gpu/")
    ]
    run(hide + "".join(f"import {m}\n" for m in modules))


def test_kernels_do_not_hide_from_transformers() -> None:
    """With the repository root as working directory, as Ray's workers have it."""
    run("import transformers.modeling_utils, shoal.kernels", cwd=ROOT)
