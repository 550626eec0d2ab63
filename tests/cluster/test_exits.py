"""Each exit code, by a command that ends with it, and the two places that list them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from shoal.cluster.exits import DONE, FAILED, INTERRUPTED, MEANING, MISUSED, UNLOADED
from shoal.engine.errors import ConfigError
from shoal.engine.supported import check_platform

ROOT = Path(__file__).resolve().parent.parent.parent
COMMAND = (sys.executable, "-m", "shoal")


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (("version",), DONE),
        (("ls",), DONE),
        (("chat", "-q", "hi", "--url", "127.0.0.1:9"), FAILED),
        (("stop", "no-such-server"), FAILED),
        (("serve", "--port", "x"), MISUSED),
        (("serve", "--local", "--dtype", "int3"), MISUSED),
        (("no-such-command",), MISUSED),
        (("ps", "--no-such-flag"), MISUSED),
        (("complete",), MISUSED),
        (("serve", "--local", "--port", "0", "/no/such/folder"), MISUSED),
        (("serve", "--local", "--port", "19", "--host", "127.0.0.1", "/no/such/folder"), UNLOADED),
        (("pull", "/no/such/folder"), UNLOADED),
    ],
)
def test_a_command_ends_with_it(args: tuple[str, ...], code: int) -> None:
    done = subprocess.run((*COMMAND, *args), capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert bool(done.stderr) is (code != DONE)


def test_interrupted(tmp_path: Path) -> None:
    (tmp_path / "serve.log").write_text("begun\n")
    command = (*COMMAND, "logs", "--log-dir", str(tmp_path), "-f")
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "TERM": "dumb"}) as p:
        assert p.stdout is not None
        assert b"begun" in p.stdout.readline()
        p.send_signal(signal.SIGINT)
        assert p.wait(60) == INTERRUPTED


def test_who_reads_our_output_may_leave() -> None:
    command = f"{sys.executable} -m shoal serve --help-all | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


def test_both_tables_list_them_all() -> None:
    helped = subprocess.run(
        (*COMMAND, "--help"), capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"}
    )
    words = " ".join(helped.stdout.split())
    assert all(f"{code} {meaning}" in words for code, meaning in MEANING.items())
    rows = re.findall(r"^\| (\d+) \| ([^|]+) \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert {int(code): meaning for code, meaning in rows if int(code) in MEANING} == dict(MEANING)


def test_where_it_cannot_run_it_says_so() -> None:
    for system in ("win32", "cygwin"):
        with pytest.raises(ConfigError, match="WSL2"):
            check_platform(system)
    for system in ("linux", "darwin"):
        check_platform(system)
