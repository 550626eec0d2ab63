"""Compiles the CPU ops into one shared object; `python build.py FOLDER` puts it there.

One object file an instruction set, each with its own flags; which one runs is chosen when the
library is loaded. Needs a C++17 compiler (CXX, else c++, g++ or clang++) for x86-64 Linux.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
NAME = "native.so"

_COMMON = ("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-Wall")
_AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq")
_BASE = ("-mavx2", "-mfma", "-mf16c")
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
    compiler()


def digest() -> str | None:
    """What the sources are, in short: a library made of others is not to be used. None without."""
    found = hashlib.sha256()
    sources = sorted(path for path in HERE.iterdir() if path.suffix in (".cpp", ".h", ".inc"))
    for path in (*sources, Path(__file__)):
        found.update(path.name.encode() + b"\0" + path.read_bytes())
    return found.hexdigest() if sources else None


def compiler() -> str:
    """A C++ compiler's command. Raises BuildError."""
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if name and shutil.which(name):
            return name
    raise BuildError("no C++ compiler was found: set CXX, or install g++")


def build(folder: Path, *, emulate_tiles: bool = False) -> Path:
    """Compile and link into `folder`; returns the library. Raises BuildError.

    `emulate_tiles`: only "amx", its tiles in plain C, which any AVX-512 machine with bfloat16 runs:
    for tests.
    """
    check()
    command = compiler()
    sets = {"amx": FLAGS["avx512bf16"]} if emulate_tiles else FLAGS
    extra = (f'-DSOURCES="{digest()}"', *(("-DEMULATE_TILES",) if emulate_tiles else ()))
    with tempfile.TemporaryDirectory() as scratch:
        jobs: list[tuple[Path, Path, tuple[str, ...]]] = [
            (HERE / f"{name}.cpp", Path(scratch, f"{name}.o"), extra) for name in PLAIN
        ]
        jobs += [
            (
                HERE / "ops.cpp",
                Path(scratch, f"{name}.o"),
                (*flags, *extra, f"-DINSTRUCTIONS={name}"),
            )
            for name, flags in sets.items()
        ]
        with ThreadPoolExecutor(os.cpu_count()) as lanes:
            objects = list(lanes.map(lambda job: _compile(command, *job), jobs))
        folder.mkdir(parents=True, exist_ok=True)
        made = Path(scratch, NAME)
        _run([command, "-shared", "-s", "-o", str(made), *objects, "-lpthread"])
        # A process that has the old library mapped keeps it.
        shutil.move(made, folder / f".{NAME}.{os.getpid()}")
        os.replace(folder / f".{NAME}.{os.getpid()}", folder / NAME)
    return folder / NAME


def _compile(command: str, source: Path, out: Path, flags: tuple[str, ...]) -> str:
    _run([command, *_COMMON, *flags, "-c", str(source), "-o", str(out)])
    return str(out)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"{' '.join(command)}\n{done.stderr}")


if __name__ == "__main__":
    try:
        print(build(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE))
    except BuildError as error:
        sys.exit(str(error))
