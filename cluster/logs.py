"""Where logs lie and what they carry: one folder, one rotated file a process, a request's id.

The terminal gets the warnings of shoal's own modules, a line each; everything else goes to the
file. Prompts are logged only with `--log-requests`, by whoever reads the requests.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import IO

from ..engine.errors import ConfigError
from .config import ServeConfig

FILE_BYTES = 10 * 2**20
FILES_KEPT = 4
CONSOLE = "console.log"

UVICORN = ("uvicorn", "uvicorn.error", "uvicorn.access")
PACKAGE = __package__.partition(".")[0]
_LEVELS = {"trace": "DEBUG"}
_FORMAT = "%(asctime)s %(levelname)s %(name)s%(request)s: %(message)s"

_request: ContextVar[str] = ContextVar("request", default="")


@contextmanager
def request_id(value: str) -> Iterator[None]:
    """Records made inside carry the request's id; follows the asyncio task."""
    token = _request.set(value)
    try:
        yield
    finally:
        _request.reset(token)


def folder(config: ServeConfig) -> Path:
    """The folder that holds every log of an application."""
    if config.log_dir:
        return Path(config.log_dir).expanduser().absolute()
    return home() / f"{config.name}-{config.port}"


def home() -> Path:
    """Where those folders lie, unless `--log-dir` says otherwise."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "shoal" / "logs"


def console(config: ServeConfig) -> IO[bytes]:
    """A new file for what a serve in the background prints. Raises ConfigError."""
    path = folder(config) / CONSOLE
    with _writing(path.parent):
        return path.open("wb")


def start(config: ServeConfig, process: str, *, terminal: bool = False) -> Path:
    """Send this process's records to `process`.log in the folder, and return the file.

    `terminal` shows warnings of shoal's own on stderr too. Called again, it begins anew. Raises
    ConfigError where the folder cannot be written.
    """
    path = folder(config) / f"{process}.log"
    with _writing(path.parent):
        file = RotatingFileHandler(
            path, maxBytes=FILE_BYTES, backupCount=FILES_KEPT, encoding="utf-8"
        )
    file.setFormatter(logging.Formatter(_FORMAT))
    file.addFilter(_add_request)
    level = config.uvicorn_log_level
    _install(file, _LEVELS.get(level, level.upper()), terminal)
    return path


@contextmanager
def _writing(place: Path) -> Iterator[None]:
    try:
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        yield
    except OSError as error:
        raise ConfigError(
            f"no log can be written to {place}: {error.strerror}; give --log-dir FOLDER",
            "log_dir",
        ) from None


def _install(file: logging.Handler, level: str, terminal: bool) -> None:
    root, own = logging.getLogger(), logging.getLogger(PACKAGE)
    for logger in (root, own, *map(logging.getLogger, UVICORN)):
        for handler in list(logger.handlers):
            if isinstance(handler, (RotatingFileHandler, _Terminal)) or logger is not root:
                logger.removeHandler(handler)
                handler.close()
        logger.propagate = True
    root.addHandler(file)
    root.setLevel(logging.WARNING)
    for name in (PACKAGE, "uvicorn"):
        logging.getLogger(name).setLevel(level)
    logging.captureWarnings(True)
    if terminal:
        own.addHandler(_Terminal())


class _Terminal(logging.StreamHandler):  # type: ignore[type-arg]
    """Warnings on stderr, one line each; the traceback stays in the file."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)
        self.setLevel(logging.WARNING)

    def format(self, record: logging.LogRecord) -> str:
        """`  warning: ...`"""
        return f"  {record.levelname.lower()}: {record.getMessage()}"


def _add_request(record: logging.LogRecord) -> bool:
    value = _request.get()
    record.request = f" [{value}]" if value else ""
    return True
