"""How many files, and so connections, a process may have open."""

from __future__ import annotations

import resource

FEW = 4096


def lift_limit() -> str | None:
    """Raise the soft limit to the hard one; a line for the operator where that is low."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):  # macOS has a bound of its own below an unlimited hard one
            hard = soft
    if hard == resource.RLIM_INFINITY or hard >= FEW:
        return None
    return (
        f"this process may open {hard} files, and each connection is one: beyond them clients wait "
        f"unheard; raise it with `ulimit -Hn {FEW * 16}`, or LimitNOFILE= of systemd"
    )
