"""A serve in the background, from its start to its end, as its user sees it."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys

from shoal.cluster.ports import holder

from tests.cluster.commands.conftest import Home

SMALL = ("--max-num-seqs", "4", "--max-model-len", "512", "--num-gpu-blocks-override", "64")


def test_from_start_to_end(home: Home, port: str) -> None:
    started = home.shoal("serve", "--local", "--detach", "--port", port, *SMALL)
    assert started.returncode == 0, started.stderr
    assert "load the model" in started.stderr and "Ctrl-C" not in started.stdout
    assert f"shoal stop {port}" in started.stdout and f"shoal logs {port} -f" in started.stdout
    (one,) = home.serves()
    assert f"as process {one['pid']}" in started.stdout
    assert (one["name"], one["models"], one["state"]) == ("shoal", ["shoal-tiny"], "ready")
    assert (one["replicas"], one["ray"]) == (1, False)
    assert one["address"] == f"http://127.0.0.1:{port}/v1"
    assert os.getsid(one["pid"]) == one["pid"]  # no terminal can end it
    assert port in home.shoal("ps").stdout

    said = home.shoal("chat", "-q", "What is shoal?")  # the one that runs here
    assert said.returncode == 0 and said.stdout.strip()
    logged = home.shoal("logs", port, "-n", "1000")
    assert logged.returncode == 0 and "Uvicorn running" in logged.stdout

    again = home.shoal("serve", "--local", "--detach", "--port", port)
    assert again.returncode == 2
    assert f"port {port} is in use by process {one['pid']}" in again.stderr

    stopped = home.shoal("stop", "shoal-tiny")
    assert stopped.returncode == 0
    assert "30 s to end" in stopped.stderr and "has ended after" in stopped.stderr
    assert home.serves() == [] and holder(int(port)) is None
    assert "Uvicorn running" in home.shoal("logs").stdout  # they outlive it
    absent = home.shoal("logs", "--log-dir", "/no/such/folder")
    assert absent.returncode == 1 and "there is no folder /no/such/folder" in absent.stderr
    assert home.shoal("stop").returncode == 1
    assert home.shoal("stop", "--all").returncode == 0


def test_on_a_ray_of_its_own_and_killed(home: Home, port: str) -> None:
    started = home.shoal("serve", "--detach", "--port", port, "--name", "flock", *SMALL)
    assert started.returncode == 0, started.stderr
    (line,) = (line for line in started.stderr.splitlines() if "load the model" in line)
    assert " MB" in line  # its replica told how much it had read
    (one,) = home.serves()
    assert (one["name"], one["state"], one["ray"]) == ("flock", "ready", True)
    sources = {line.split()[0] for line in home.shoal("logs").stdout.splitlines()}
    assert "gateway-0" in sources
    stopped = home.shoal("stop", "flock", "--force")
    assert stopped.returncode == 0, stopped.stderr
    assert home.serves() == [] and holder(int(port)) is None


def test_a_start_that_fails_ends_as_it_would_in_the_foreground(home: Home, port: str) -> None:
    for args, code in ((("/no/such/folder",), 3), (("--max-model-len", "9999999"), 2)):
        away = home.shoal("serve", "--local", "--port", port, "--detach", *args)
        assert away.returncode == code
        assert away.stderr.splitlines()[-1].startswith("error: ")
    here = home.shoal("serve", "--local", "--port", port, "/no/such/folder")
    assert here.returncode == 3
    assert here.stderr.splitlines()[-1].startswith("error: no folder '/no/such/folder'")
    assert home.serves() == []


def test_it_outlives_the_terminal_it_was_started_from(home: Home, port: str) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "shoal", "serve", "--local", "--detach", "--port", port]
    launcher = subprocess.Popen(
        [*command, *SMALL],
        env=home.environ,
        start_new_session=True,
        preexec_fn=lambda: os.login_tty(theirs),
        pass_fds=(theirs,),
    )
    os.close(theirs)
    shown = b""
    while b"shoal stop" not in shown:
        shown += os.read(ours, 65536)
    assert launcher.wait(60) == 0
    os.close(ours)  # hangs up
    (one,) = home.serves()
    assert one["state"] == "ready"


def test_an_impatient_launcher_takes_it_along(home: Home, port: str) -> None:
    command = [sys.executable, "-m", "shoal", "serve", "--detach", "--port", port, *SMALL]
    with subprocess.Popen(command, env=home.environ, stderr=subprocess.PIPE) as launcher:
        assert launcher.stderr is not None
        assert b"start Python" in launcher.stderr.readline()
        launcher.send_signal(signal.SIGINT)
        assert launcher.wait(120) == 130
    assert home.serves() == []
