"""`shoal completion`: the script that makes a shell complete `shoal`, and the words of MODEL."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from typer.completion import get_completion_script  # type: ignore[attr-defined]

from ..config import BUNDLED


class Shell(StrEnum):
    """Shells that a script can be had for."""

    bash = "bash"
    zsh = "zsh"
    fish = "fish"


def completion(shell: Annotated[Shell, typer.Argument(metavar="SHELL")]) -> None:
    """Print the completion script of bash, zsh or fish: `source <(shoal completion bash)`."""
    print(get_completion_script(prog_name="shoal", complete_var="_SHOAL_COMPLETE", shell=shell))


def complete_model(incomplete: str) -> list[str]:
    """Models whose name begins so: the bundled one and those in the hub's cache.

    Where there is none, shells complete the names of files.
    """
    return [name for name in (BUNDLED, *_cached()) if name.startswith(incomplete)]


def _cached() -> list[str]:
    """Hub ids in the cache, by the names of its folders alone: a shell waits for this."""
    from huggingface_hub.constants import HF_HUB_CACHE

    folders = sorted(Path(HF_HUB_CACHE).glob("models--*"))
    return [folder.name.removeprefix("models--").replace("--", "/") for folder in folders]
