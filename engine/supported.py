"""Where shoal runs at all."""

from __future__ import annotations

import sys

from .errors import ConfigError


def check_platform(system: str = sys.platform) -> None:
    """Raises ConfigError on a system where shoal cannot run."""
    if system in ("win32", "cygwin"):
        raise ConfigError(
            "shoal does not run on Windows itself; install it inside WSL2, which is a Linux: "
            "https://learn.microsoft.com/windows/wsl/install"
        )
