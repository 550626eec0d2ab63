"""`shoal bench serve`: load on a running server, level by level, and the figures of it."""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

from ..engine.errors import ConfigError
from . import figures
from .client import Client, ClientError
from .traffic import Level, Run, drive
from .workload import FEW_TOKENS, Workload, bodies, token_ids, vocabulary_size

MOST_WARM_UPS = 8
UNBOUNDED = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The levels to be run and how many requests each has; None of them: by the level."""

    levels: tuple[Level, ...]
    num_prompts: int | None = None
    num_warmups: int | None = None

    def prompts(self, level: Level) -> int:
        """Enough for a few rounds of the level."""
        return self.num_prompts or max(4 * min(level.concurrency, 64), 8)

    def warmups(self, level: Level) -> int:
        """One request a stream, within reason."""
        if self.num_warmups is not None:
            return self.num_warmups
        return min(level.concurrency, self.prompts(level), MOST_WARM_UPS)


def levels(max_concurrency: str | None, request_rate: float | None) -> tuple[Level, ...]:
    """The levels of `1,8,32`, or one of requests that start `request_rate` a second.

    Raises ConfigError.
    """
    if request_rate is not None and not request_rate > 0:
        raise ConfigError(f"--request-rate must be above 0, got {request_rate}", "request_rate")
    rate = math.inf if request_rate is None else request_rate
    if max_concurrency is None:
        return (Level(concurrency=8 if request_rate is None else UNBOUNDED, rate=rate),)
    try:
        counts = [int(part) for part in max_concurrency.split(",")]
    except ValueError:
        counts = [0]
    if min(counts) < 1:
        raise ConfigError(
            f"--max-concurrency is {max_concurrency!r}; expected numbers such as 8 or 1,8,32",
            "max_concurrency",
        )
    return tuple(Level(concurrency=count, rate=rate) for count in counts)


def run(
    client: Client,
    shape: dict[str, Any],
    plan: Plan,
    *,
    model: str | None,
    vocabulary: int | str | None,
    json_file: Path | None,
) -> bool:
    """Run every level, print the table, and say whether every request succeeded.

    `shape` holds the fields of Workload but the model. `vocabulary` is its size, or the folder of a
    tokenizer that tells it. Raises ConfigError, ClientError.
    """
    card = _card(client, model)
    workload = Workload(model=str(card["id"]), **shape)
    vocab_size = vocabulary_size(card, vocabulary)
    if vocab_size is None:
        _tell(
            f"the vocabulary is not known: ids below {FEW_TOKENS} are used (--tokenizer FOLDER "
            "or --vocab-size N tells it)"
        )
    date = datetime.now(UTC).isoformat(timespec="seconds")
    found = []
    for level in plan.levels:
        done = _level(client, workload, vocab_size or FEW_TOKENS, level, plan)
        found.append(figures.summary(done, workload))
    Console().print(figures.table(found))
    for line in figures.warnings(found):
        _tell(line)
    if json_file is not None:
        figures.write_json(json_file, client.url, workload, found, date)
    return not any(level["failed"] for level in found)


def _card(client: Client, model: str | None) -> dict[str, Any]:
    cards = client.models()
    if model is None:
        return cards[0]
    named = [card for card in cards if card["id"] == model]
    if not named:
        served = ", ".join(str(card["id"]) for card in cards)
        raise ClientError(f"{client.url} serves no {model!r}, but: {served}")
    return named[0]


def _level(client: Client, workload: Workload, vocab_size: int, level: Level, plan: Plan) -> Run:
    name = f"{level.concurrency} {level.rate}"
    warm = token_ids(workload, vocab_size, plan.warmups(level), f"warm {name}")
    ids = token_ids(workload, vocab_size, plan.prompts(level), name)
    if warm:
        _drive(client, workload, Level(concurrency=level.concurrency), warm, "warm-up")
    return _drive(client, workload, level, ids, _title(level))


def _title(level: Level) -> str:
    if math.isfinite(level.rate):
        return f"{level.rate:g} requests/s"
    return f"{level.concurrency} at once"


def _drive(
    client: Client, workload: Workload, level: Level, ids: Sequence[list[int]], title: str
) -> Run:
    sent = bodies(workload, client, list(ids))
    with _bar() as bar:
        task = bar.add_task(title, total=len(sent))
        return asyncio.run(
            drive(
                client.url + workload.path,
                level,
                sent,
                headers=client.headers,
                seed=workload.seed,
                on_done=lambda: bar.advance(task),
            )
        )


def _bar() -> Progress:
    console = Console(stderr=True)
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _tell(line: str) -> None:
    print(f"  note: {line}", file=sys.stderr)
