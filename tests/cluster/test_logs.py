"""Records lie in one folder, carry the request's id, and do not flood the terminal."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from shoal.cluster import logs
from shoal.cluster.settings import serve_config
from shoal.engine.errors import ConfigError


@pytest.fixture
def loggers() -> Iterator[None]:
    """Leave the loggers of this process as they were."""
    names = ("", logs.PACKAGE, "uvicorn", "uvicorn.error", "uvicorn.access")
    before = [
        (log := logging.getLogger(n), log.handlers[:], log.level, log.propagate) for n in names
    ]
    yield
    logging.captureWarnings(False)
    for log, handlers, level, propagate in before:
        for handler in set(log.handlers) - set(handlers):
            handler.close()
        log.handlers[:] = handlers
        log.setLevel(level)
        log.propagate = propagate


def test_the_folder_is_named_after_the_application(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/c")
    assert logs.folder(serve_config({"port": 9}, {})) == Path("/c/shoal/logs/shoal-9")
    assert logs.folder(serve_config({"log_dir": "/l"}, {})) == Path("/l")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert logs.folder(serve_config({}, {})).is_relative_to(Path.home())


@pytest.mark.usefixtures("loggers")
def test_each_task_logs_its_own_request(tmp_path: Path) -> None:
    path = logs.start(serve_config({"log_dir": str(tmp_path)}, {}), "gateway")
    log = logging.getLogger("shoal.cluster.gateway")

    async def serve(name: str) -> None:
        with logs.request_id(name):
            await asyncio.sleep(0)
            log.info("served %s", name)

    async def both() -> None:
        await asyncio.gather(serve("req-a"), serve("req-b"))

    asyncio.run(both())
    log.debug("hidden")
    log.info("no request")
    text = path.read_text()
    assert "shoal.cluster.gateway [req-a]: served req-a\n" in text
    assert "[req-b]: served req-b\n" in text
    assert "gateway: no request\n" in text
    assert "hidden" not in text


@pytest.mark.usefixtures("loggers")
def test_files_are_rotated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "FILE_BYTES", 1000)
    path = logs.start(serve_config({"log_dir": str(tmp_path)}, {}), "replica")
    for _ in range(200):
        logging.getLogger("shoal.engine").warning("a line of some length")
    assert path.stat().st_size <= 1000
    assert len(list(tmp_path.iterdir())) == 1 + logs.FILES_KEPT


def test_the_terminal_gets_short_warnings_alone(tmp_path: Path) -> None:
    code = (
        "import logging, sys; from shoal.cluster import logs\n"
        "from shoal.cluster.settings import serve_config\n"
        "logs.start(serve_config({'log_dir': sys.argv[1]}), 'serve', terminal=True)\n"
        "logs.start(serve_config({'log_dir': sys.argv[1]}), 'serve', terminal=True)\n"
        "logging.getLogger('ray').warning('chatter')\n"
        "logging.getLogger('uvicorn.error').info('uvicorn says')\n"
        "try: 1 / 0\n"
        "except ZeroDivisionError: logging.getLogger('shoal.cluster.x').exception('lost it')\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "  error: lost it\n")
    text = (tmp_path / "serve.log").read_text()
    assert all(part in text for part in ("chatter", "uvicorn says", "ZeroDivisionError"))
    assert text.count("chatter") == 1


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    config = serve_config({"log_dir": str(tmp_path / "file")}, {})
    with pytest.raises(ConfigError, match="give --log-dir"):
        logs.start(config, "serve")
    assert os.listdir(tmp_path) == ["file"]
