"""A home of its own for the commands that look at what runs on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from shoal.cluster.ports import free_port


class Home:
    """Runs `shoal` as a user whose caches and runtime folder are empty at first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        runtime = folder / "runtime"
        runtime.mkdir(mode=0o700)
        self.environ = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("SHOAL_API", "HF_"))},
            "HF_HUB_OFFLINE": "1",
            "COLUMNS": "200",
            "XDG_CACHE_HOME": str(folder / "cache"),
            "XDG_RUNTIME_DIR": str(runtime),
        }

    def shoal(self, *args: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run one command to its end."""
        return self.run(sys.executable, "-m", "shoal", *args, **options)

    def run(self, *command: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a program to its end."""
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            env=self.environ | options.pop("environ", {}),
            timeout=240,
            **options,
        )

    def serves(self) -> list[dict[str, Any]]:
        """What `ps` lists."""
        found: list[dict[str, Any]] = json.loads(self.shoal("ps", "--json").stdout)
        return found


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    home = Home(tmp_path)
    yield home
    for one in home.serves():
        home.shoal("stop", str(one["pid"]), "--force")


@pytest.fixture
def port() -> str:
    return str(free_port())
