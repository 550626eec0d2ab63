"""`shoal bench chaos`: kills replicas under streams, and compares every stream with the undisturbed
run, byte for byte."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
from rich.console import Console
from rich.table import Table

from ..engine.errors import ConfigError, EngineLost
from . import chaos_streams
from .chaos_streams import Told
from .client import Client
from .ports import free_port
from .running import running

FAULTS = {
    "kill": "SIGKILL of a replica",
    "worker": "SIGKILL of a rank's worker",
    "stop": "SIGSTOP of a replica, SIGCONT later",
    "term": "SIGTERM of a replica",
}
_TITLES = {"kill": "Replica:", "stop": "Replica:", "term": "Replica:", "worker": "WorkerActor"}
START_S = 300.0
POLL_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How many streams, `distinct` of them different, and which faults how often."""

    streams: int
    distinct: int
    concurrency: int
    output_len: int
    faults: tuple[str, ...]
    every_s: float
    stop_s: float
    timeout_s: float
    seed: int = 0

    def __post_init__(self) -> None:
        for fault in self.faults:
            if fault not in FAULTS:
                known = ", ".join(FAULTS)
                raise ConfigError(f"--faults knows {known}; got {fault!r}", "faults")


class Fault(NamedTuple):
    """One that was made: when, in seconds of the run, and how long till all replicas were there."""

    kind: str
    pid: int
    at_s: float
    recovered_s: float | None


def run(client: Client, plan: Plan, serve_pid: int, json_file: Path | None) -> bool:
    """Run undisturbed, then under faults; print the report. Whether every stream was the same.

    `serve_pid`: the process whose descendants the faults befall. Raises ConfigError, ClientError.
    """
    if not _targets(serve_pid, plan.faults):
        raise ConfigError(f"process {serve_pid} has no replicas on this machine", "faults")
    model = client.model()
    bodies = chaos_streams.bodies(model, plan.distinct, plan.output_len, plan.seed)
    note = Console(stderr=True)
    note.print(f"  {plan.distinct} streams undisturbed")
    calm = asyncio.run(_tell(client, plan, bodies))
    note.print(f"  {plan.streams} streams under faults")
    sent = [bodies[i % plan.distinct] for i in range(plan.streams)]
    begin = time.perf_counter()
    told, faults = asyncio.run(_disturbed(client, plan, sent, serve_pid))
    found = summary(calm, told, faults, time.perf_counter() - begin)
    Console().print(table(found))
    for line in (*found["errors"], *found["differences"]):
        note.print(f"  note: {line}")
    if json_file is not None:
        date = datetime.now(UTC).isoformat(timespec="seconds")
        shape = {name: getattr(plan, name) for name in Plan.__slots__}
        whole = {"date": date, "model": model, "plan": shape} | found
        json_file.write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
    return bool(found["identical"] == plan.streams)


def summary(
    calm: Sequence[Told], told: Sequence[Told], faults: Sequence[Fault], duration_s: float
) -> dict[str, Any]:
    """The figures; pauses are the longest of each stream that finished, in milliseconds."""
    finished = [one for one in told if one.error is None]
    found = [one.difference(calm[i % len(calm)]) for i, one in enumerate(told) if not one.error]
    differences = [line for line in found if line is not None]
    return {
        "streams": len(told),
        "finished": len(finished),
        "identical": len(found) - len(differences),
        "duration_s": duration_s,
        "pause_ms": _spread([one.pause_s for one in finished]),
        "first_ms": _spread([one.first_s for one in finished]),
        "undisturbed_pause_ms": _spread([one.pause_s for one in calm]),
        "faults": [fault._asdict() for fault in faults],
        "errors": sorted({one.error for one in (*calm, *told) if one.error})[:10],
        "differences": differences[:10],
    }


def table(found: dict[str, Any]) -> Table:
    """The report."""
    drawn = Table(show_header=False)
    rows = [("streams", found["streams"]), ("finished", found["finished"])]
    rows += [("identical to the undisturbed run", found["identical"])]
    for name, key in (
        ("longest pause, ms", "pause_ms"),
        ("longest pause undisturbed, ms", "undisturbed_pause_ms"),
        ("first token, ms", "first_ms"),
    ):
        rows += [(f"{name}, {at}", f"{value:,.0f}") for at, value in found[key].items()]
    for fault in found["faults"]:
        back = fault["recovered_s"]
        said = "not within the run" if back is None else f"{back:.1f} s to full strength"
        rows.append((f"{FAULTS[fault['kind']]} at {fault['at_s']:.1f} s", said))
    for name, value in rows:
        drawn.add_row(name, str(value))
    return drawn


@contextlib.contextmanager
def served(arguments: Sequence[str]) -> Iterator[tuple[str, int]]:
    """A serve of its own with these arguments, once it is ready: its URL and its process.

    Raises EngineLost when it does not come up.
    """
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="shoal-chaos-") as folder:
        output = Path(folder) / "output"
        with output.open("w") as to:
            process = subprocess.Popen(
                [sys.executable, "-m", "shoal", "serve", *arguments, "--port", str(port)],
                stdout=to,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
        try:
            until = time.monotonic() + START_S
            while not any(entry.ready for entry in running() if entry.pid == process.pid):
                if process.poll() is not None or time.monotonic() > until:
                    raise EngineLost(f"the server did not start:\n{output.read_text()[-2000:]}")
                time.sleep(POLL_S)
            yield f"http://127.0.0.1:{port}", process.pid
        finally:
            process.terminate()
            process.wait()


async def _tell(client: Client, plan: Plan, sent: Sequence[bytes]) -> list[Told]:
    return await chaos_streams.tell_all(
        f"{client.url}/v1/completions",
        sent,
        headers=client.headers,
        concurrency=plan.concurrency,
        timeout_s=plan.timeout_s,
    )


async def _disturbed(
    client: Client, plan: Plan, sent: Sequence[bytes], serve_pid: int
) -> tuple[list[Told], list[Fault]]:
    faults: list[Fault] = []
    disturbing = asyncio.create_task(_disturb(client, plan, serve_pid, faults))
    try:
        told = await _tell(client, plan, sent)
    finally:
        disturbing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await disturbing
    return told, faults


async def _disturb(client: Client, plan: Plan, serve_pid: int, faults: list[Fault]) -> None:
    """One fault after the other; each waits till the one before it has been made good."""
    begin = time.perf_counter()
    async with aiohttp.ClientSession(headers=client.headers) as session:
        number = 0
        while True:
            await asyncio.sleep(plan.every_s)
            kind = plan.faults[number % len(plan.faults)]
            pids = _targets(serve_pid, (kind,))
            if not pids:
                number += 1
                continue
            pid, at = pids[number % len(pids)], time.perf_counter()
            number += 1
            faults.append(Fault(kind, pid, at - begin, None))
            await _make(kind, pid, plan.stop_s)
            while not await _whole(session, client.url):
                await asyncio.sleep(POLL_S)
            faults[-1] = Fault(kind, pid, at - begin, time.perf_counter() - at)


async def _make(kind: str, pid: int, stop_s: float) -> None:
    numbers = {"stop": signal.SIGSTOP, "term": signal.SIGTERM}
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, numbers.get(kind, signal.SIGKILL))
        if kind == "stop":
            try:
                await asyncio.sleep(stop_s)
            finally:
                os.kill(pid, signal.SIGCONT)
    await asyncio.sleep(1.0)  # the door knows by then


async def _whole(session: aiohttp.ClientSession, url: str) -> bool:
    """Whether the door says that every replica is there."""
    try:
        async with session.get(f"{url}/health") as answer:
            return bool((await answer.json())["status"] == "ready")
    except (aiohttp.ClientError, OSError, ValueError, KeyError):
        return False


def _targets(serve_pid: int, kinds: Sequence[str]) -> list[int]:
    """The processes below `serve_pid` that faults of these kinds befall."""
    parents, titles = {}, {}
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            stat = (place / "stat").read_text().rpartition(")")[2].split()
            parents[int(place.name)] = int(stat[1])
            titles[int(place.name)] = (place / "cmdline").read_bytes().decode(errors="replace")

    def below(pid: int) -> bool:
        while pid in parents and pid != serve_pid:
            pid = parents[pid]
        return pid == serve_pid

    wanted = {_TITLES[kind] for kind in kinds}
    return sorted(
        pid
        for pid, title in titles.items()
        if any(word in title for word in wanted) and ":Gateway" not in title and below(pid)
    )


def _spread(seconds: Sequence[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    if not ordered:
        return {}
    last = len(ordered) - 1
    return {f"p{p}": 1000 * ordered[round(last * p / 100)] for p in (50, 99, 100)}
