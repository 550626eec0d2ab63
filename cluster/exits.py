"""The exit codes of `shoal`: what each means, and which error ends with which."""

from __future__ import annotations

from collections.abc import Mapping

from ..engine.errors import ConfigError, LoadError

DONE, FAILED, MISUSED, UNLOADED, INTERRUPTED = 0, 1, 2, 3, 130

MEANING: Mapping[int, str] = {
    DONE: "done",
    FAILED: "an error while running",
    MISUSED: "a wrong flag, configuration or machine",
    UNLOADED: "a model that cannot be had or read",
    INTERRUPTED: "interrupted by Ctrl-C, or by a second signal while stopping",
}


def exit_code(error: BaseException) -> int:
    """The code that a command ends with when `error` ends it."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, ConfigError):
        return MISUSED
    return UNLOADED if isinstance(error, LoadError) else FAILED
