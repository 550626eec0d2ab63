"""What a peer is: how it is installed, reads the checkpoint, and is started.

Standard library only: a peer's file is also run by the peer's own Python, as its driver.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent

HTTP, IN_PROCESS = "http", "in process"
GPU_SHARE = 0.45
"""Of a GPU's memory, which both sides have at the same time."""


class Refused(Exception):
    """A peer that cannot be measured here, with the reason."""


@dataclass(frozen=True)
class Environment:
    """A virtual environment of a peer's own, in `folder`."""

    folder: Path
    pip_args: tuple[str, ...] = ()

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    @property
    def site(self) -> Path:
        """Its folder of packages."""
        return next(self.folder.glob("lib/python3*/site-packages"))

    def make(self) -> None:
        """Make it, where it is not there yet."""
        if not self.python.exists():
            subprocess.run([sys.executable, "-m", "venv", str(self.folder)], check=True)

    def pip(self, *args: str, **variables: str) -> None:
        """Run pip in it; what is there already costs a second. Raises Refused."""
        extra = self.pip_args if args[0] == "install" else ()
        command = [str(self.python), "-m", "pip", "-q", *args, *extra]
        done = subprocess.run(command, env=environ(**variables), capture_output=True, text=True)
        if done.returncode:
            raise Refused(f"pip {' '.join(args)} failed:\n{done.stderr[-2000:]}")

    def version(self, distribution: str) -> str:
        """The installed version of one of its packages."""
        code = f"import importlib.metadata as m; print(m.version({distribution!r}))"
        return subprocess.check_output([self.python, "-c", code], text=True).strip()


@dataclass(frozen=True)
class Launch:
    """How to start one side: what it reads, and the same limits for all."""

    environment: Environment
    model: Path
    device: str
    threads: int
    port: int
    max_len: int = 4096
    max_streams: int = 64
    prefix_caching: bool = True
    kv_gib: int = 6  # on CPUs; on a GPU each side has `GPU_SHARE` of it

    @property
    def cpus(self) -> list[int]:
        """The processors that a side of so many threads may be bound to."""
        return sorted(os.sched_getaffinity(0))[: self.threads]

    def driver(self, file: str) -> list[str]:
        """The command that runs a peer's file as a driver."""
        options = {
            "model": str(self.model),
            "device": self.device,
            "threads": self.threads,
            "max_len": self.max_len,
            "max_streams": self.max_streams,
            "prefix_caching": self.prefix_caching,
            "kv_gib": self.kv_gib,
        }
        return [str(self.environment.python), str(HERE / file), json.dumps(options)]


def _as_it_is(environment: Environment, checkpoint: Path) -> Path:
    return checkpoint


def _nothing(launch: Launch) -> dict[str, str]:
    return {}


@dataclass(frozen=True)
class Peer:
    """One system to compare with.

    `over`: whether it is asked over HTTP, at `Launch.port`, or in its own process by a driver
    (`driving.py`). `install` and `convert` may be called again and then do nothing. `convert`
    returns the checkpoint as the peer reads it. `by_prefix`: it is started anew where prefixes are
    shared, because what keeps them costs it something on prompts that share nothing.
    `spins`: it keeps cores busy while it has nothing to do, and is stopped while shoal is asked.
    """

    name: str
    distribution: str
    devices: tuple[str, ...]
    over: str
    install: Callable[[Environment, str], None]
    command: Callable[[Launch], list[str]]
    convert: Callable[[Environment, Path], Path] = _as_it_is
    variables: Callable[[Launch], dict[str, str]] = _nothing
    by_prefix: bool = False
    spins: bool = False

    def check(self, device: str) -> None:
        """Raise Refused where it is not measured on `device`."""
        if device not in self.devices:
            raise Refused(f"{self.name} is measured on {' and '.join(self.devices)}, not {device}")


def environ(**variables: str) -> dict[str, str]:
    """This process's environment without what would lead another Python astray."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return {**kept, "PYTHONUNBUFFERED": "1", **variables}


def packages(environment: Environment, *needs: str) -> None:
    """Make the environment and install one list of `needs/` after the other."""
    environment.make()
    for name in needs:
        environment.pip("install", "-r", str(HERE / "needs" / f"{name}.txt"))
