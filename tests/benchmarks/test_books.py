"""The benchmarks of memory and growth, on few requests."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest


def module(name: str) -> Any:
    return importlib.import_module(name)


def test_a_paged_cache_is_fuller_than_a_contiguous_one() -> None:
    found = module("memory").measure(60, 20_000)
    paged = [found[f"paged, blocks of {size}"]["live_of_held"] for size in (8, 16, 32, 64, 128)]
    assert paged == sorted(paged, reverse=True) and all(0.5 < share <= 1 for share in paged)
    whole = found["contiguous, 2048 a sequence"]
    assert whole["live_of_held"] < 0.5
    assert found["paged, blocks of 16"]["at_once"] > 2 * whole["at_once"]
    known = found["contiguous, the length known beforehand"]["live_of_held"]
    assert found["contiguous, the length rounded up to a power of two"]["live_of_held"] < known < 1


def test_reserved_room_by_hand() -> None:
    memory, lengths = module("memory"), module("shoal.cluster.bench.lengths").Lengths
    one = [lengths(10, 4)]
    found = memory.reserved(one, 140, sum)
    assert found["live_of_held"] == pytest.approx((10 + 11 + 12 + 13) / (4 * 14))
    assert found["at_once"] == 10
    assert [memory.power_of_two(n) for n in (1, 2, 3, 64, 65)] == [1, 2, 4, 64, 128]


def test_live_tokens_and_held_blocks() -> None:
    books, lengths = module("books"), module("shoal.cluster.bench.lengths").Lengths
    own = books.scheduler(64, 8)
    books.add(own, [lengths(9, 3)])
    plan = own.schedule()
    assert (books.live_tokens(own), books.held_blocks(own)) == (9, 2)
    own.commit(books.result(plan))
    while own.unfinished:
        own.commit(books.result(own.schedule()))
    assert (books.live_tokens(own), books.held_blocks(own)) == (0, 0)


def test_sequences_that_fit_and_samples() -> None:
    naive = module("naive")
    prompts = naive.made(50, 100, 2048)
    assert len(prompts) == 50 and max(map(len, prompts)) <= 100
    batches = naive.sampled(prompts, 8, 16)
    assert len(batches) == 3 and all(
        batch in [prompts[i : i + 8] for i in range(0, 50, 8)] for batch in batches
    )
    assert naive.sampled(prompts, 1, 0) == [[prompt] for prompt in prompts]
    tally = naive.Tally()
    tally.add([[1] * 4, [1] * 10], 6, 6, 2.0)
    assert (tally.wanted, tally.computed, tally.prompts) == (26, 32, 2)


def test_the_page_of_growth() -> None:
    growth = module("growth")
    found = {
        "machine": "here",
        "model": "m",
        "command": "growth.py",
        "rows": [(1, 8.0), (16, 40.0)],
        "waiting": [(0, 70.0), (1000, 71.0)],
    }
    page = growth.drawn(found)
    assert page.count("<svg") == 3 and not re.search(r"https?:|src=|href=", page)
    assert growth.step_us(2, 3, steps=5) > 0


def test_committed_results_are_whole() -> None:
    results = Path(__file__).resolve().parents[2] / "benchmarks/results"
    files = list(results.glob("*.json"))
    assert files
    for file in files:
        command = json.loads(file.read_text()).get("command")
        told = command if isinstance(command, str) else " ".join(command or ())
        assert "benchmarks/" in told or told.startswith("shoal bench "), file.name
