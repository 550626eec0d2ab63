"""What a step costs the host: scheduling, committing, sending, detokenizing; no model, no torch.

    python benchmarks/host.py [--rows 1,16,64,256,1024] [--json FILE]

CPU time of the thread, so that a busy machine shifts the figures little. `median` is the common
step; `mean` counts the steps too in which blocks fill up and are hashed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shoal.cluster import garbage, wire
from shoal.engine.config import EngineConfig
from shoal.engine.core.scheduler import Scheduler
from shoal.engine.executor import Capacity
from shoal.engine.plan import CacheSpec, Result
from shoal.engine.request import Request, SamplingParams, Update
from shoal.engine.text import TextStream, Tokenizer

BLOCK = 16
PROMPT = 100
STEPS, WARM = 320, 32
LONG = 131_072
TINY = Path(__file__).resolve().parents[1] / "configs" / "tiny"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", default="1,16,64,256,1024")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    garbage.settle()  # as a server does
    found: list[dict[str, Any]] = []
    for rows in map(int, chosen.rows.split(",")):
        found.append(report(f"{rows} running", steps(decoding(rows))))
    waiting = decoding(256, waiting=10_000)
    found.append(report("256 running, 10,000 waiting", steps(waiting)))
    found.append(report("256 running, no place for one of 128k", steps(crowded())))
    found.append(report("one prompt of 128k, a chunk", steps(long_prompt(), warm=0, num=256)))
    found.append(report("one sequence of 128k, a token", steps(after_long_prompt())))
    if chosen.json is not None:
        chosen.json.write_text(json.dumps({"command": sys.argv, "steps": found}, indent=1) + "\n")


# What is scheduled.


def scheduler(
    rows: int,
    *,
    waiting: int = 0,
    prompt: int = PROMPT,
    output: int = 4096,
    blocks: int = 400_000,
    budget: int = 512,
) -> Scheduler:
    """`rows` places and as many requests for them, and `waiting` more."""
    length = LONG + 8192
    config = EngineConfig(
        model="none",
        max_num_seqs=rows,
        max_model_len=length,
    )
    capacity = Capacity(
        groups=(CacheSpec(8, 128),),
        num_blocks=(blocks,),
        block_size=BLOCK,
        max_model_len=length,
        step_tokens=max(budget, rows),
        vocab_size=2000,
        eos_token_ids=frozenset({0}),
        dtype="none",
        device="none",
        digest="none",
    )
    made = Scheduler(config, capacity)
    for number in range(rows + waiting):
        made.add(request(number, prompt, output))
    return made


def request(number: int, prompt: int, output: int) -> Request:
    tokens = tuple((number * 31 + place * 7) % 1900 + 1 for place in range(prompt))
    params = SamplingParams(max_tokens=output, ignore_eos=True, seed=number)
    return Request(id=f"cmpl-{number:032x}-0", prompt=tokens, params=params)


def decoding(rows: int, waiting: int = 0) -> Scheduler:
    """So many that begin in one step, and decode from the next one on."""
    return scheduler(rows, waiting=waiting, budget=PROMPT * rows)


def long_prompt() -> Scheduler:
    """One sequence, computed in chunks."""
    return scheduler(1, prompt=LONG)


def after_long_prompt() -> Scheduler:
    """The same, once its prompt is computed."""
    made = long_prompt()
    while made.num_behind > 1:
        step(made, Cost())
    return made


def crowded() -> Scheduler:
    """256 that run, and a prompt of 128k tokens, cached but for its end, that finds no room."""
    made = scheduler(257, blocks=LONG // BLOCK + 256 * 7 + 64, budget=8192)
    made.add(request(-1, LONG, 1))
    while made.num_running != 1:
        for number in range(256):
            made.abort(request(number, 1, 1).id)
        step(made, Cost())
    while made.unfinished:
        step(made, Cost())
    for number in range(256):
        made.add(request(number, 100, 4096))
    while made.num_running < 256:
        step(made, Cost())
    made.add(request(-1, LONG, 1))
    return made


# What a step costs.


@dataclass(slots=True)
class Cost:
    """Microseconds of each step, by part."""

    schedule: list[float] = field(default_factory=list)
    commit: list[float] = field(default_factory=list)
    send: list[float] = field(default_factory=list)
    detokenize: list[float] = field(default_factory=list)
    rows: int = 0


def step(made: Scheduler, cost: Cost) -> list[Update]:
    with timed(cost.schedule):
        plan = made.schedule()
    assert plan is not None
    cost.rows = len(plan.rows)
    tokens = tuple((row.start % 1900 + 5,) for row in plan.rows if row.sample)
    result = Result(step=plan.step, tokens=tokens)
    with timed(cost.commit):
        return made.commit(result)


def steps(made: Scheduler, warm: int = WARM, num: int = STEPS) -> Cost:
    """So many steps, and what the gateway does with them."""
    cost, tokenizer = Cost(), Tokenizer.load(str(TINY))
    texts: dict[str, TextStream] = {}
    for number in range(warm + num):
        if number == warm:
            cost = Cost()
        updates = step(made, cost)
        with timed(cost.send):
            body = wire.frame(wire.Step(updates))
        message = wire.from_replica(body[4:])
        assert isinstance(message, wire.Step)
        for update in message.updates:
            if update.id not in texts:
                texts[update.id] = TextStream(tokenizer, SamplingParams())
        with timed(cost.detokenize):
            for update in message.updates:
                texts[update.id].take(update)
    return cost


class timed:
    """Adds the CPU time of what is done inside, in microseconds, to a list."""

    def __init__(self, into: list[float]) -> None:
        self._into = into

    def __enter__(self) -> None:
        self._since = time.thread_time_ns()

    def __exit__(self, *_: object) -> None:
        self._into.append((time.thread_time_ns() - self._since) / 1000)


def report(name: str, cost: Cost) -> dict[str, Any]:
    parts = {part: getattr(cost, part) for part in ("schedule", "commit", "send", "detokenize")}
    line: dict[str, Any] = {"case": name, "rows": cost.rows}
    for part, values in parts.items():
        line |= {f"{part}_us_median": statistics.median(values)}
        line |= {f"{part}_us_mean": statistics.mean(values)}
    host = [a + b for a, b in zip(cost.schedule, cost.commit, strict=True)]
    line |= {"host_us_median": statistics.median(host), "host_us_mean": statistics.mean(host)}
    line |= {"host_us_max": max(host)}
    shown = "  ".join(f"{part} {line[f'{part}_us_median']:6.0f}" for part in parts)
    print(
        f"{name:38} {shown}  us; schedule and commit {line['host_us_median']:6.0f} median, "
        f"{line['host_us_mean']:6.0f} mean, {line['host_us_max']:6.0f} most",
        flush=True,
    )
    return line


if __name__ == "__main__":
    main()
