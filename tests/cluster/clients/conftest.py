"""A running shoal, and clients in environments of their own, which `make clients` makes."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import pytest
from shoal.cluster.ports import free_port

HERE = Path(__file__).resolve().parent
NEEDS = HERE / "needs"
MADE = HERE.parents[2] / ".venv" / "clients"
NAMES = ("shoal-tiny", "gpt-6-astra", "gpt-3.5-turbo-instruct", "model")
"""The last three are what openai's own tests ask for."""

START_S = 120.0
CLIENT_S = 280.0


def places(name: str) -> dict[str, str]:
    """Where a client is: `ENV` its environment, `PYTHON` its interpreter.

    The interpreter of the tests serves too, where it has what the client is made of. A test whose
    client is not here is skipped.
    """
    if (MADE / name / "made-from").is_file():
        return {"ENV": str(MADE / name), "PYTHON": str(MADE / name / "bin" / "python")}
    if (NEEDS / f"{name}.txt").is_file() and is_here((NEEDS / f"{name}.txt").read_text()):
        return {"PYTHON": sys.executable}
    pytest.skip(f"no {name} here: `make clients ARGS={name}` makes it")


def is_here(needs: str) -> bool:
    """Whether this environment holds every `name==version` of a list."""
    wanted = dict(line.split("==") for line in needs.split() if "==" in line)
    try:
        return all(metadata.version(name) == version for name, version in wanted.items())
    except metadata.PackageNotFoundError:
        return False


@pytest.fixture(scope="session")
def serve(
    tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., str]]:
    """Serves the bundled model in a process of its own, with further flags; gives its address."""
    with contextlib.ExitStack() as stack:

        def start(*flags: str) -> str:
            port = free_port()
            command = [sys.executable, "-m", "shoal", "serve", str(tiny_model), "--local"]
            command += ["--port", str(port), "--threads", "1", "--num-gpu-blocks-override", "2048"]
            command += ["--log-dir", str(tmp_path_factory.mktemp("logs")), *flags]
            said = tmp_path_factory.mktemp("server") / "said"
            with said.open("wb") as out:
                server = subprocess.Popen(
                    command, stdout=out, stderr=out, preexec_fn=end_with_parent
                )
            stack.callback(server.wait, 60)
            stack.callback(server.terminate)
            url = f"http://127.0.0.1:{port}"
            deadline = time.monotonic() + START_S
            while not ready(url):
                assert server.poll() is None, said.read_text()
                assert time.monotonic() < deadline, said.read_text()
                time.sleep(0.05)
            return url

        yield start


def end_with_parent() -> None:
    """Have Linux end this process when the test run is killed; elsewhere nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


@pytest.fixture(scope="session")
def shoal_url(serve: Callable[..., str]) -> str:
    """A server of the bundled model, under each of `NAMES`."""
    return serve(*(word for name in NAMES for word in ("--served-model-name", name)))


def ready(url: str) -> bool:
    """Whether the server answers requests."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            return bool(json.load(answer)["status"] == "ready")
    except (OSError, urllib.error.URLError):
        return False


Run = Callable[..., str]


@pytest.fixture
def run_client(request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    """Runs a command of a client's environment beside a running shoal; gives what it printed.

    `URL` in the command stands for the server's address (`url`, else that of `shoal_url`), `HERE`
    for the folder of the scripts, `ENV` and `PYTHON` for the client's. A test whose client is not
    here is skipped.
    """

    def run(
        name: str,
        *command: str,
        url: str | None = None,
        folder: Path | str = tmp_path,
        **variables: str,
    ) -> str:
        known = places(name) | {"HERE": str(HERE)}
        known["URL"] = url or request.getfixturevalue("shoal_url")

        def placed(word: str) -> str:
            return re.sub("|".join(known), lambda found: known[found[0]], word)

        clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "OPENAI_API_KEY")}
        done = subprocess.run(
            [placed(word) for word in command],
            cwd=placed(str(folder)),
            env=clean | {k: placed(v) for k, v in variables.items()},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=CLIENT_S,
        )
        assert done.returncode == 0, done.stdout[-8000:]
        return done.stdout

    return run
