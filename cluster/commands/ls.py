"""`shoal ls`: the models that are on this machine."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Any

import typer

from ..columns import print_table
from ..config import BUNDLED, bundled_model

AsJson = Annotated[bool, typer.Option("--json", help="Print a JSON array.")]
Place = Annotated[
    str | None,
    typer.Option(help="Where models are kept (default: the hub's own cache).", metavar="DIR"),
]


def ls(as_json: AsJson = False, download_dir: Place = None) -> None:
    """List the models in the hub's cache, and the bundled one."""
    rows = [_bundled(), *_cached(download_dir)]
    if as_json:
        print(json.dumps(rows, indent=2))
    else:
        print_table(("NAME", "SIZE", "REVISION", "STATE"), [_cells(row) for row in rows])


def _bundled() -> dict[str, Any]:
    folder = bundled_model()
    size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    return {
        "name": BUNDLED,
        "revision": "bundled",
        "refs": [],
        "path": str(folder),
        "num_bytes": size,
        "complete": True,
    }


def _cached(download_dir: str | None) -> list[dict[str, Any]]:
    from ...engine.model.hub import cached_models

    return [asdict(m) | {"path": str(m.path)} for m in cached_models(download_dir)]


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    refs = f" ({', '.join(row['refs'])})" if row["refs"] else ""
    state = "complete" if row["complete"] else "incomplete; `shoal pull` goes on with it"
    return row["name"], _size(row["num_bytes"]), f"{row['revision'][:12]}{refs}", state


def _size(num_bytes: int) -> str:
    scale, unit = (1e9, "GB") if num_bytes >= 1e9 else (1e6, "MB")
    return f"{num_bytes / scale:.1f} {unit}"
