"""`shoal doctor`: whether the machines can serve a configuration, and what to mend if not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..columns import print_table
from ..exits import FAILED
from ..resolve import resolve

if TYPE_CHECKING:
    from ..doctor.finding import Finding

File = Annotated[Path | None, typer.Argument(metavar="CONFIG", help="YAML file of `shoal serve`.")]
Address = Annotated[
    str | None,
    typer.Option(
        "--ray-address",
        help="Ray cluster to look at (default: RAY_ADDRESS, or this machine alone).",
        metavar="HOST:PORT",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print a JSON array.")]


def doctor(config: File = None, ray_address: Address = None, as_json: AsJson = False) -> None:
    """Look at every node that a configuration would be served on, and name what to mend.

    Exits with 1 where something is broken.
    """
    from ..doctor.examine import examine

    args = ["--config", str(config)] if config is not None else []
    args += ["--ray-address", ray_address] if ray_address else []
    found = list(examine(resolve(args).config))
    if as_json:
        print(json.dumps([asdict(finding) for finding in found], indent=2))
    else:
        show(found)
    if any(finding.level == "failure" for finding in found):
        raise typer.Exit(FAILED)


def show(found: Sequence[Finding]) -> None:
    """Print findings, and below them what to mend."""
    rows = [(f.check, f.node or "all", f.level, f.words) for f in found]
    print_table(("CHECK", "NODE", "", "FOUND"), rows)
    print()
    for finding in found:
        if finding.fix:
            print(f"{finding.level}: {finding.check} of {finding.node or 'all'}: {finding.fix}")
    if all(finding.level == "ok" for finding in found):
        print("nothing to mend")
