"""`shoal status`: the replicas and gateways of a server, and how they are."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from ..client import Client, ClientError
from ..columns import print_table
from ..exits import FAILED
from .options import Secret, Url, client

EVERY_S = 1.0
MOST_DECISIONS = 8
CLEAR = "\x1b[H\x1b[2J"

AsJson = Annotated[bool, typer.Option("--json", help="Print the answer of GET /cluster.")]
Watch = Annotated[bool, typer.Option("--watch", "-w", help="Show it again and again.")]


def status(
    url: Url = None, api_key: Secret = None, as_json: AsJson = False, watch: Watch = False
) -> None:
    """Show the replicas, ranks and gateways of a server.

    Exits with 0 where all replicas that are wanted are ready, else with 1.
    """
    server = client(url, api_key)
    while watch:
        _show_again(server, as_json=as_json)
        time.sleep(EVERY_S)
    told = server.call("/cluster")
    show(told, as_json=as_json)
    if not all_ready(server, told):
        raise typer.Exit(FAILED)


def all_ready(server: Client, told: Mapping[str, Any]) -> bool:
    """Whether every model has the replicas that it wants, and none is on its way out or in."""
    if any(row["state"] not in ("ready", "dead") for row in told["replicas"]):
        return False  # the dead are shown for a while, though others have taken their places
    try:
        return server.call("/health").get("status") == "ready"
    except ClientError:
        return False


def show(told: Mapping[str, Any], *, as_json: bool) -> None:
    """Print an answer of GET /cluster."""
    if as_json:
        print(json.dumps(told, indent=None if not sys.stdout.isatty() else 2), flush=True)
        return
    head = ("REPLICA", "MODEL", "NODE", "PID", "STATE", "RUNNING", "WAITING", "KV")
    print_table(head, [_replica(row) for row in told["replicas"]])
    ranks = [_rank(r, rank) for r in told["replicas"] if len(r["ranks"]) > 1 for rank in r["ranks"]]
    if ranks:
        print()
        print_table(("REPLICA", "RANK", "NODE", "PID", "DEVICE", "LAST STEP"), ranks)
    print()
    gateways = [(row["node"], str(row["pid"]), str(row["streams"])) for row in told["gateways"]]
    print_table(("GATEWAY", "PID", "STREAMS"), gateways)
    if scaling := told.get("scaling"):
        print()
        print_table(("SCALES", "REPLICAS", "FROM", "TO"), [_bounds(row) for row in scaling])
        print()
        print_table(("DECIDED", "MODEL", "WHY"), _decisions(scaling))
    sys.stdout.flush()


def _show_again(server: Client, *, as_json: bool) -> None:
    """A server that does not answer for a while is waited for."""
    try:
        told = server.call("/cluster")
    except ClientError as error:
        print(error.message, file=sys.stderr)
        return
    if sys.stdout.isatty() and not as_json:
        print(CLEAR, end="")
    show(told, as_json=as_json)


def _replica(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        row["id"],
        row["model"],
        row["node"],
        str(row["pid"]),
        row["state"],
        str(row["running"]),
        str(row["waiting"]),
        f"{row['kv_usage']:.0%}",
    )


def _bounds(row: Mapping[str, Any]) -> tuple[str, ...]:
    numbers = (row["replicas"], row["min_replicas"], row["max_replicas"])
    return row["model"], *map(str, numbers)


def _decisions(scaling: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """The last few of all models, the newest last."""
    found = [(d["at"], row["model"], d["line"]) for row in scaling for d in row["decisions"]]
    now = time.time()
    return [(f"{now - at:.0f} s ago", *words) for at, *words in sorted(found)[-MOST_DECISIONS:]]


def _rank(replica: Mapping[str, Any], row: Mapping[str, Any]) -> tuple[str, ...]:
    last_s = row["last_step_s"]
    since = "none yet" if last_s is None else f"{last_s:.1f} s ago"
    return replica["id"], str(row["rank"]), row["node"], str(row["pid"]), row["device"], since
