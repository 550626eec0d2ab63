"""How this program was called, as results keep it: a line to repeat it by, without its secrets."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable
from pathlib import Path

from .config import SECRET

SECRETS = (*("--" + name.replace("_", "-") for name in SECRET), "--header")
HIDDEN = "..."


def invocation() -> str:
    """The command line of this process, quoted for a shell, secrets hidden."""
    program, *words = sys.argv
    shown = ["shoal"] if Path(program).name in ("shoal", "__main__.py") else ["python", program]
    return shlex.join([*shown, *redacted(words)])


def redacted(words: Iterable[str]) -> list[str]:
    """The words with HIDDEN in place of what follows a flag of SECRETS, up to the next flag."""
    told: list[str] = []
    secret = first = False
    for word in words:
        # The first value is one whatever it begins with.
        if first or (secret and not word.startswith("-")):
            told.append(HIDDEN)
            first = False
            continue
        flag, equals, _ = word.partition("=")
        secret = flag.lower().replace("_", "-") in SECRETS
        first = secret and not equals
        told.append(f"{flag}={HIDDEN}" if secret and equals else word)
    return told
