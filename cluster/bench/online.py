"""`shoal bench serve`: load on a running server, level by level, and the figures of it."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

from ..client import Client, ClientError
from ..invocation import invocation
from . import figures
from .arrivals import Level
from .datasets import LOWEST_ID, Dataset
from .report import gap_percentiles, report
from .save import Saving, write
from .table import METRICS, table
from .talks import Conversation, Form, route
from .traffic import Run, drive
from .trial import refused, tried
from .vocabulary import FEW_TOKENS, counter, text_of, vocabulary_size

MOST_WARM_UPS = 8
MOST_ROUNDS_OF = 64
POLL_S = 0.5
NO_ROUTE = (404, 405)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The levels to be run, what is asked, and what is made of the answers.

    `num_prompts` conversations and `num_warmups` before them a level; None: by the level.
    `percents`, `metrics` and `objectives` (milliseconds by metric) say what is reported.
    """

    levels: tuple[Level, ...]
    dataset: Dataset = field(default_factory=Dataset)
    endpoint: str = "completions"
    model: str | None = None
    vocab_size: int | None = None
    tokenizer: str | None = None
    num_prompts: int | None = None
    num_warmups: int | None = None
    ignore_eos: bool = True
    sampling: Mapping[str, Any] = field(default_factory=lambda: {"temperature": 0.0})
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    percents: tuple[float, ...] = figures.PERCENTS
    metrics: tuple[str, ...] = tuple(METRICS)
    objectives: Mapping[str, float] = field(default_factory=dict)
    quiet: bool = False
    ready_timeout_s: float = 0.0
    json_file: Path | None = None
    report_file: Path | None = None
    saving: Saving | None = None

    def prompts(self, level: Level) -> int:
        """Enough for a few rounds of the level."""
        return self.num_prompts or max(4 * min(level.concurrency, MOST_ROUNDS_OF), 8)

    def warmups(self, level: Level) -> int:
        """One request a stream, within reason."""
        if self.num_warmups is not None:
            return self.num_warmups
        return min(level.concurrency, self.prompts(level), MOST_WARM_UPS)


def run(client: Client, plan: Plan) -> bool:
    """Run every level, print the table, and say whether every request succeeded.

    Whatever ends it, the levels before have shown what they did. Raises ConfigError, ClientError.
    """
    route(plan.endpoint)
    bench = _Bench(client, plan, _card(client, plan))
    try:
        for level in plan.levels:
            bench.run(level)
    except BaseException:
        if bench.levels:
            bench.finish()
        raise
    return bench.finish()


def _card(client: Client, plan: Plan) -> dict[str, Any]:
    """The card of the model, once the server tells it; no more than the name that was given where
    the server has no such route.
    """
    until = time.monotonic() + plan.ready_timeout_s
    while True:
        try:
            cards = client.models()
            break
        except ClientError as error:
            if plan.model is not None and error.status in NO_ROUTE:
                return {"id": plan.model}
            if time.monotonic() >= until:
                raise
            time.sleep(POLL_S)
    if plan.model is None:
        return cards[0]
    named = [card for card in cards if card["id"] == plan.model]
    if not named:
        served = ", ".join(str(card["id"]) for card in cards)
        raise ClientError(f"{client.url} serves no {plan.model!r}, but: {served}")
    return named[0]


class _Bench:
    """A server, what it is asked, and the levels found so far."""

    def __init__(self, client: Client, plan: Plan, card: dict[str, Any]) -> None:
        self.client, self.plan, self.model = client, plan, str(card["id"])
        self.notes: list[str] = []
        size = vocabulary_size(card, plan.vocab_size or plan.tokenizer)
        if size is None:
            self._note(
                f"the vocabulary is not known: ids below {FEW_TOKENS} are used (--tokenizer FOLDER "
                "or --vocab-size N tells it)"
            )
        self.vocab_size = size or FEW_TOKENS
        self.count = counter(plan.tokenizer) if plan.dataset.path else None
        self.form = Form(
            model=self.model,
            path=route(plan.endpoint),
            ignore_eos=plan.ignore_eos,
            sampling=plan.sampling,
            extra=plan.extra_body,
        )
        self.text_of = text_of(client, self.model, self._note)
        self.saving = plan.saving
        self.date = datetime.now(UTC).isoformat(timespec="seconds")
        self.asked: set[Conversation] = set()
        self.num_asked = 0
        self.levels: list[dict[str, Any]] = []
        self.page_levels: list[dict[str, Any]] = []

    def run(self, level: Level) -> None:
        """Warm the server up, run the level, and enter its figures."""
        plan, name = self.plan, f"{len(self.levels)} {level.concurrency} {level.rate}"
        warm = self._conversations(plan.warmups(level), f"warm {name}")
        asked = self._conversations(plan.prompts(level), name)
        if not self.levels:
            self._try(warm + asked)
        done = self._drive(level, warm, asked)
        found = figures.summary(
            done,
            percents=plan.percents,
            objectives=plan.objectives,
            whole_answers=self.form.ignore_eos,
        )
        self.levels.append(found)
        if plan.report_file is not None:
            self.page_levels.append(found | _drawn(done))
        if self.saving is not None:
            _tell(f"saved {self.saving.write(self.model, self.date, found, done)}")
            # One file for all levels has a line of each.
            again = self.saving.append or self.saving.filename is not None
            self.saving = replace(self.saving, append=again)

    def _try(self, asked: list[Conversation]) -> None:
        """Find out by one request how the server takes what is to be asked."""
        ids = any(self.form.as_ids(conversation) for conversation in asked)
        prompt = (min(LOWEST_ID, self.vocab_size - 1),) * 4 if ids else ()
        taken = tried(self.client, self.form, prompt)
        if line := refused(self.form, taken):
            self._note(line)
        self.form = taken

    def finish(self) -> bool:
        """Print and write what was found; whether every request succeeded."""
        plan = self.plan
        Console().print(table(self.levels, plan.metrics, plan.percents))
        self._tell_of_repeats()
        for line in figures.warnings(self.levels):
            self._note(line)
        found = {
            "date": self.date,
            "command": invocation(),
            "url": self.client.url,
            "model": self.model,
            "workload": self._workload(),
            "notes": self.notes,
        }
        if plan.json_file is not None:
            write(plan.json_file, json.dumps(found | {"levels": self.levels}, indent=2), "--json")
        if plan.report_file is not None:
            write(plan.report_file, report(found | {"levels": self.page_levels}), "--report")
        return not any(level["failed"] for level in self.levels)

    def _tell_of_repeats(self) -> None:
        path, again = self.plan.dataset.path, self.num_asked - len(self.asked)
        if path is not None and again:
            self._note(
                f"{again} of {self.num_asked} prompts, warm-ups included, had been sent before, as "
                f"{path} has no others: the server may have them cached"
            )

    def _workload(self) -> dict[str, Any]:
        plan = self.plan
        asked = {"model": self.model, "endpoint": self.form.path, "dataset": plan.dataset.name}
        sampling = {**plan.sampling, **plan.extra_body}
        body = {"sampling": sampling, "ignore_eos": self.form.ignore_eos}
        return asked | plan.dataset.told() | body

    def _note(self, line: str) -> None:
        self.notes.append(line)
        _tell(line)

    def _conversations(self, num: int, stream: str) -> list[Conversation]:
        """`num` that were not asked yet, as far as the data set has others."""
        made = self.plan.dataset.conversations(
            num, self.vocab_size, stream, self.count, taken=self.num_asked
        )
        self.num_asked += num
        if self.plan.dataset.path is not None:
            self.asked.update(made)
        return made

    def _drive(self, level: Level, warm: list[Conversation], asked: list[Conversation]) -> Run:
        client, form = self.client, self.form
        # Text is made before the load begins: the server would bear its making too.
        before, talks = (
            [form.talk(form.spelled(conversation, self.text_of)) for conversation in some]
            for some in (warm, asked)
        )
        with _bar(quiet=self.plan.quiet) as bar:
            task = bar.add_task(level.title, total=len(warm) + len(asked))
            return asyncio.run(
                drive(
                    client.url + form.path,
                    level,
                    talks,
                    headers=client.headers,
                    warm=before,
                    metrics_url=f"{client.url}/metrics",
                    seed=self.plan.dataset.seed,
                    on_done=lambda: bar.advance(task),
                )
            )


def _drawn(run: Run) -> dict[str, Any]:
    """What plots show beyond the figures."""
    ordered = sorted(gap for record in run.records for gap in figures.gaps(record))
    return {
        "requests": figures.each(run),
        "over_time": figures.over_time(run),
        "gap_percentiles_ms": gap_percentiles(ordered),
    }


def _bar(*, quiet: bool) -> Progress:
    console = Console(stderr=True)
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn())
    hidden = quiet or not console.is_terminal
    return Progress(*columns, console=console, transient=True, disable=hidden)


def _tell(line: str) -> None:
    print(f"  note: {line}", file=sys.stderr)
