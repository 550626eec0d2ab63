"""`shoal ps`: what this user serves on this machine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Annotated, Any
from urllib.error import HTTPError

import typer

from ..columns import print_table
from ..direct import direct_opener
from ..running import Running, running

PATIENCE_S = 2.0

AsJson = Annotated[bool, typer.Option("--json", help="Print a JSON array.")]


def ps(as_json: AsJson = False) -> None:
    """List what is served on this machine."""
    rows = listed(running())
    if as_json:
        print(json.dumps(rows, indent=2))
    elif not rows:
        print("nothing is served here; `shoal serve` starts a server")
    else:
        head = ("NAME", "MODELS", "ADDRESS", "PID", "SINCE", "STATE", "REPLICAS")
        print_table(head, [_cells(row) for row in rows])


def listed(entries: Sequence[Running]) -> list[dict[str, Any]]:
    """Each serve with what its door says of it."""
    with ThreadPoolExecutor(8) as pool:
        states = list(pool.map(state, entries))
    return [
        {
            "name": entry.name,
            "models": list(entry.models),
            "address": f"{entry.url}/v1",
            "pid": entry.pid,
            "since": datetime.fromtimestamp(entry.since).astimezone().isoformat("T", "seconds"),
            "state": said,
            "replicas": entry.replicas,
            "ray": not entry.local,
            "logs": entry.log_dir,
        }
        for entry, said in zip(entries, states, strict=True)
    ]


def state(entry: Running) -> str:
    """What `/health` of a serve says: loading, ready, degraded, down; where nothing answers,
    starting, or stopping once it has been ready."""
    said = _health(entry.url)
    if said is None:
        return "stopping" if entry.ready else "starting"
    return said


def _health(url: str) -> str | None:
    """None where nobody answers."""
    try:
        with direct_opener().open(f"{url}/health", timeout=PATIENCE_S) as answer:
            return str(json.load(answer)["status"])
    except HTTPError as error:
        with error:
            return _status(error.read())
    except (OSError, ValueError, KeyError):
        return None


def _status(body: bytes) -> str | None:
    try:
        return str(json.loads(body)["status"])
    except (ValueError, KeyError, TypeError):
        return None


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    since = row["since"][:19].replace("T", " ")
    models, count = ", ".join(row["models"]), str(row["replicas"])
    return row["name"], models, row["address"], str(row["pid"]), since, row["state"], count
