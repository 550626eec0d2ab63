"""`shoal bench chaos`: makes faults under streams, and compares every stream with the undisturbed
run, byte for byte."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import aiohttp
from rich.console import Console
from rich.table import Table

from . import chaos_streams
from .bench.save import write
from .chaos_streams import Told
from .client import Client
from .invocation import invocation
from .open_files import lift_limit

POLL_S = 0.05
FREED_S = 10.0


class Faults(Protocol):
    """Makes faults; `words` says what each kind is."""

    words: Mapping[str, str]

    async def strike(self, kind: str, number: int) -> int | None:
        """Make a fault of a kind, the `number`-th of all, and return once the door knows.

        The process that it befell, None where there was none.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How many streams, `distinct` of them different, and which faults how often.

    `timeout_s` bounds the silence on a stream.
    """

    streams: int
    distinct: int
    concurrency: int
    output_len: int
    faults: tuple[str, ...]
    every_s: float
    timeout_s: float
    seed: int = 0


class Fault(NamedTuple):
    """One that was made: when, in seconds of the run, and how long till all replicas were there."""

    kind: str
    pid: int | None
    at_s: float
    recovered_s: float | None


def run(client: Client, plan: Plan, faults: Faults, json_file: Path | None) -> bool:
    """Run undisturbed, then under faults; write and print the report.

    Whether there were faults and every stream was the same, but for those whose gateway was killed.
    Raises ConfigError, ClientError.
    """
    lift_limit()
    model = client.model()
    bodies = chaos_streams.bodies(model, plan.distinct, plan.output_len, plan.seed)
    note = Console(stderr=True)
    note.print(f"  {plan.distinct} streams undisturbed")
    calm = asyncio.run(_tell(client, plan, bodies))
    note.print(f"  {plan.streams} streams under faults")
    sent = [bodies[i % plan.distinct] for i in range(plan.streams)]
    begin = time.perf_counter()
    told, made, freed_s = asyncio.run(_disturbed(client, plan, sent, faults))
    found = summary(calm, told, made, time.perf_counter() - begin, freed_s)
    if json_file is not None:
        date = datetime.now(UTC).isoformat(timespec="seconds")
        shape = {name: getattr(plan, name) for name in Plan.__slots__}
        whole = {"date": date, "command": invocation(), "model": model, "plan": shape} | found
        write(json_file, json.dumps(whole, indent=2), "--json")
    Console().print(table(found, faults.words))
    lines = [*found["errors"], *found["differences"]]
    if not made:
        lines.append(
            f"no fault was made in the {found['duration_s']:.1f} s of the streams, one being due "
            f"every {plan.every_s:g} s: give more --streams, or a shorter --every"
        )
    for line in lines:  # which a model's text may be in
        note.print(f"  note: {line}", markup=False, highlight=False)
    spared = found["hung_up"] if "gateway" in plan.faults else 0
    return bool(made and found["identical"] + spared == plan.streams and freed_s is not None)


def summary(
    calm: Sequence[Told],
    told: Sequence[Told],
    faults: Sequence[Fault],
    duration_s: float,
    freed_s: float | None,
) -> dict[str, Any]:
    """The figures; pauses are the longest of each stream that finished, in milliseconds.

    `hung_up`: streams whose connection ended. `at_once`: as many as were open at the same time.
    """
    finished = [one for one in told if one.error is None]
    found = [one.difference(calm[i % len(calm)]) for i, one in enumerate(told) if not one.error]
    differences = [line for line in found if line is not None]
    return {
        "streams": len(told),
        "finished": len(finished),
        "identical": len(found) - len(differences),
        "hung_up": sum(one.hung_up for one in told),
        "at_once": _most_at_once(told),
        "freed_s": freed_s,
        "duration_s": duration_s,
        "pause_ms": _spread([one.pause_s for one in finished]),
        "first_ms": _spread([one.first_s for one in finished]),
        "undisturbed_pause_ms": _spread([one.pause_s for one in calm]),
        "faults": [fault._asdict() for fault in faults],
        "errors": sorted({one.error for one in (*calm, *told) if one.error})[:10],
        "differences": differences[:10],
    }


def table(found: dict[str, Any], words: Mapping[str, str]) -> Table:
    """The report."""
    drawn = Table(show_header=False)
    rows = [("streams", found["streams"]), ("finished", found["finished"])]
    rows += [("identical to the undisturbed run", found["identical"])]
    rows += [("whose gateway was lost", found["hung_up"]), ("most at once", found["at_once"])]
    for name, key in (
        ("longest pause, ms", "pause_ms"),
        ("longest pause undisturbed, ms", "undisturbed_pause_ms"),
        ("first token, ms", "first_ms"),
    ):
        rows += [(f"{name}, {at}", f"{value:,.0f}") for at, value in found[key].items()]
    for fault in found["faults"]:
        back = fault["recovered_s"]
        said = "not within the run" if back is None else f"{back:.1f} s to full strength"
        rows.append((f"{words[fault['kind']]} at {fault['at_s']:.1f} s", said))
    freed_s = found["freed_s"]
    said = f"not within {FREED_S:g} s" if freed_s is None else f"{freed_s:.1f} s"
    rows.append(("after the last stream, till replicas had nothing left", said))
    for name, value in rows:
        drawn.add_row(name, str(value))
    return drawn


async def _tell(client: Client, plan: Plan, sent: Sequence[bytes]) -> list[Told]:
    return await chaos_streams.tell_all(
        f"{client.url}/v1/completions",
        sent,
        headers=client.headers,
        concurrency=plan.concurrency,
        timeout_s=plan.timeout_s,
    )


async def _disturbed(
    client: Client, plan: Plan, sent: Sequence[bytes], faults: Faults
) -> tuple[list[Told], list[Fault], float | None]:
    made: list[Fault] = []
    async with aiohttp.ClientSession(headers=client.headers) as session:
        disturbing = asyncio.create_task(_disturb(session, client.url, plan, faults, made))
        try:
            told = await _tell(client, plan, sent)
        finally:
            disturbing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await disturbing
        return told, made, await _freed(session, client.url)


async def _disturb(
    session: aiohttp.ClientSession, url: str, plan: Plan, faults: Faults, made: list[Fault]
) -> None:
    """One fault after the other; each waits till the one before it has been made good."""
    begin = time.perf_counter()
    for number in itertools.count():
        await asyncio.sleep(plan.every_s)
        kind, at = plan.faults[number % len(plan.faults)], time.perf_counter()
        made.append(Fault(kind, None, at - begin, None))
        pid = await faults.strike(kind, number)
        if pid is None:
            made.pop()
            continue
        made[-1] = Fault(kind, pid, at - begin, None)
        while not await _whole(session, url):
            await asyncio.sleep(POLL_S)
        made[-1] = Fault(kind, pid, at - begin, time.perf_counter() - at)


async def _freed(session: aiohttp.ClientSession, url: str) -> float | None:
    """How long it takes till replicas have nothing more to do; None where it takes too long."""
    begin = time.perf_counter()
    while (after_s := time.perf_counter() - begin) < FREED_S:
        with contextlib.suppress(aiohttp.ClientError, OSError, ValueError, KeyError):
            async with session.get(f"{url}/cluster") as answer:
                rows = (await answer.json())["replicas"]
            if not any(row["running"] + row["waiting"] for row in rows):
                return after_s
        await asyncio.sleep(POLL_S)
    return None


async def _whole(session: aiohttp.ClientSession, url: str) -> bool:
    """Whether the door says that every replica is there."""
    try:
        async with session.get(f"{url}/health") as answer:
            return bool((await answer.json())["status"] == "ready")
    except (aiohttp.ClientError, OSError, ValueError, KeyError):
        return False


def _most_at_once(told: Sequence[Told]) -> int:
    """Of the streams, those that were open at the same moment."""
    moves = [(one.began, 1) for one in told] + [(one.ended, -1) for one in told]
    return max(itertools.accumulate(step for _, step in sorted(moves)), default=0)


def _spread(seconds: Sequence[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    if not ordered:
        return {}
    last = len(ordered) - 1
    return {f"p{p}": 1000 * ordered[round(last * p / 100)] for p in (50, 99, 100)}
