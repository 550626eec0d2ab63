"""Compiles the CPU ops into one shared object; `python build.py FOLDER` puts it there.

One object file an instruction set, each with its own flags; which one runs is chosen when the
library is loaded. Needs a C++17 compiler (CXX, else c++, g++ or clang++) for x86-64 Linux; what
one cannot compile beyond AVX2 is left out, and the library tells whom that slows down.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
NAME = "native.so"

_COMMON = ("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-Wall")
_AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq")
_BASE = ("-mavx2", "-mfma", "-mf16c")
# Rising: an older compiler knows the first of them, and each set's machines run those before it.
FLAGS = {
    "avx2": _BASE,
    "avx512": (*_BASE, *_AVX512),
    "avx512bf16": (*_BASE, *_AVX512, "-mavx512bf16"),
    "amx": (*_BASE, *_AVX512, "-mavx512bf16", "-mamx-tile", "-mamx-bf16"),
}
PLAIN = ("pool", "cpus", "ranks", "instructions", "sizes")


class BuildError(Exception):
    """What keeps the library from being built here."""


def check() -> None:
    """Raises BuildError where the ops cannot be built: another processor or system, no compiler."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise BuildError(f"they are for x86-64 Linux, not {platform.system()} {platform.machine()}")
    compilers()


def digest() -> str:
    """What the sources are, in short: a library made of others is not to be used."""
    found = hashlib.sha256()
    sources = sorted(path for path in HERE.iterdir() if path.suffix in (".cpp", ".h", ".inc"))
    for path in (*sources, Path(__file__)):
        found.update(path.name.encode() + b"\0" + path.read_bytes())
    return found.hexdigest()


def compilers() -> list[list[str]]:
    """Commands of the C++ compilers there are, CXX first, at least one. Raises BuildError."""
    given = os.environ.get("CXX", "")
    try:
        commands = [shlex.split(given), ["c++"], ["g++"], ["clang++"]]
    except ValueError as error:
        raise BuildError(f"CXX is no command of a shell ({error}): {given}") from error
    found: dict[tuple[str, ...], list[str]] = {}
    for command in commands:
        if command and (path := shutil.which(command[0])):
            found.setdefault((_file(path), *command[1:]), command)
    if not found:
        raise BuildError("no C++ compiler was found: set CXX, or install g++")
    return [*found.values()]


def _file(path: str) -> str:
    """The compiler itself: c++ and g++ are mostly one. What stands before several, as ccache does,
    is a compiler for each name that it is called by.
    """
    real = os.path.realpath(path)
    return real if "++" in os.path.basename(real) else path


def build(folder: Path, *, emulate_tiles: bool = False) -> Path:
    """Compile and link into `folder`; returns the library. Raises BuildError.

    By the first compiler that can. `emulate_tiles`: only "amx", its tiles in plain C, which any
    AVX-512 machine with bfloat16 runs: for tests.
    """
    check()
    sets = {"amx": FLAGS["avx512bf16"]} if emulate_tiles else FLAGS
    extra = (f'-DSOURCES="{digest()}"', *(("-DEMULATE_TILES",) if emulate_tiles else ()))
    failures = []
    for command in compilers():
        try:
            return _build(command, folder, sets, extra)
        except BuildError as failure:
            failures.append(str(failure))
            _say(f"not by {shlex.join(command)}", failure)
    raise BuildError("\n".join(failures))


def _build(
    command: list[str], folder: Path, sets: Mapping[str, tuple[str, ...]], extra: tuple[str, ...]
) -> Path:
    with tempfile.TemporaryDirectory() as scratch:
        objects = _compile_all(command, Path(scratch), sets, extra)
        folder.mkdir(parents=True, exist_ok=True)
        made = Path(scratch, NAME)
        _run([*command, "-shared", "-s", "-o", str(made), *objects, "-lpthread"])
        # A process that has the old library mapped keeps it.
        shutil.move(made, folder / f".{NAME}.{os.getpid()}")
        os.replace(folder / f".{NAME}.{os.getpid()}", folder / NAME)
    return folder / NAME


def _compile_all(
    command: list[str], folder: Path, sets: Mapping[str, tuple[str, ...]], extra: tuple[str, ...]
) -> list[str]:
    """The objects in the order to link: PLAIN, then rising sets, of which only the first must be.

    The standard library's templates are in several of them, and the linker keeps the first copy: so
    no machine comes upon one with instructions that it lacks.
    """
    jobs = {name: (HERE / f"{name}.cpp", extra) for name in PLAIN}
    jobs |= {
        name: (HERE / "ops.cpp", (*flags, *extra, f"-DINSTRUCTIONS={name}"))
        for name, flags in sets.items()
    }
    with ThreadPoolExecutor(os.cpu_count()) as lanes:
        compiled = {
            name: lanes.submit(_compile, command, source, folder / f"{name}.o", flags)
            for name, (source, flags) in jobs.items()
        }
    needed = (*PLAIN, next(iter(sets)))
    objects = []
    for name, each in compiled.items():
        try:
            objects.append(each.result())
        except BuildError as failure:
            if name in needed:
                raise
            _say(f"without {name}", failure)
    return objects


def _say(what: str, failure: BuildError) -> None:
    lines = str(failure).splitlines()[1:]
    why = next((line for line in lines if "error" in line), "the compiler fails")
    print(f"shoal: native CPU ops {what}: {why}", file=sys.stderr)


def _compile(command: list[str], source: Path, out: Path, flags: tuple[str, ...]) -> str:
    _run([*command, *_COMMON, *flags, "-c", str(source), "-o", str(out)])
    return str(out)


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BuildError(f"{shlex.join(command)}\n{error}") from error
    if done.returncode:
        raise BuildError(f"{shlex.join(command)}\n{done.stderr}")


if __name__ == "__main__":
    try:
        print(build(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE))
    except (BuildError, OSError) as error:
        sys.exit(str(error))
