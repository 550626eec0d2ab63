"""How the cost of a step grows: by instructions and hashes counted, not by the clock.

One instruction may go through a whole container in C, which no count of instructions shows. Where
that matters the containers themselves refuse it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection
from types import FrameType
from typing import Any, NoReturn

import pytest
from shoal.engine.config import EngineConfig
from shoal.engine.core import kv
from shoal.engine.core.blocks import Blocks
from shoal.engine.core.scheduler import Scheduler
from shoal.engine.keys import chained_keys, root_key
from shoal.engine.plan import Result
from shoal.engine.request import Request, SamplingParams

from .fake import capacity

SIZE = 4
LONG = 2048


def scheduler(
    rows: int, waiting: int = 0, *, blocks: int = 4000, budget: int = 256, places: int | None = None
) -> Scheduler:
    """`rows` that run, one token behind, and others that wait for a place."""
    config = EngineConfig(
        max_num_seqs=rows if places is None else places,
        max_model_len=2 * LONG,
    )
    made = Scheduler(
        config, capacity(num_blocks=blocks, max_model_len=2 * LONG, step_tokens=budget)
    )
    for number in range(rows):
        made.add(request(f"r{number}", 2, number))
    while made.num_running < rows:
        step(made)
    for number in range(waiting):
        made.add(request(f"w{number}", 2, number))
    return made


def request(id: str, num_prompt: int, first: int = 0, output: int = 1000) -> Request:
    prompt = tuple((first + place) % 40 + 1 for place in range(num_prompt))
    return Request(
        id=id, prompt=prompt, params=SamplingParams(max_tokens=output, ignore_eos=True, seed=0)
    )


def step(made: Scheduler) -> None:
    plan = made.schedule()
    assert plan is not None
    tokens = tuple((7,) for row in plan.rows if row.sample)
    made.commit(Result(step=plan.step, tokens=tokens))


def instructions(action: Callable[[], None]) -> int:
    """How many of Python's instructions `action` runs, loops and calls alike."""
    counted = 0

    def count(frame: FrameType, event: str, of: object) -> Any:
        nonlocal counted
        if event == "call":
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
        counted += event == "opcode"
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        action()
    finally:
        sys.settrace(before)
    return counted


def steps(made: Scheduler) -> int:
    """The instructions of as many steps as fill a block."""
    return instructions(lambda: [step(made) for _ in range(SIZE)] and None)


def refused(*args: object, **options: object) -> NoReturn:
    raise AssertionError("a step goes through all that wait")


class HugeList(list[Any]):
    """A list that lets nobody go through it."""

    __iter__ = __contains__ = __reversed__ = __eq__ = __add__ = __mul__ = refused
    copy = count = index = insert = remove = reverse = sort = refused

    def __getitem__(self, at: Any) -> Any:
        return refused() if isinstance(at, slice) else super().__getitem__(at)


class HugeDict(dict[Any, Any]):
    """A dict that lets nobody go through it."""

    __iter__ = __reversed__ = __eq__ = __or__ = refused
    copy = items = keys = values = refused


HUGE: dict[type, type] = {list: HugeList, dict: HugeDict}


def guard(made: Scheduler) -> list[str]:
    """Have every container of all that wait refuse to be gone through; their names.

    One that is neither a list nor a dict wants a kind of its own in `HUGE`.
    """
    guarded = []
    for owner in (made, made.roster, made.roster.waiting):
        for name, value in vars(owner).items():
            if isinstance(value, Collection) and len(value) >= made.num_waiting:
                setattr(owner, name, HUGE[type(value)](value))
                guarded.append(name)
    return guarded


def test_waiting_requests_cost_a_step_nothing() -> None:
    few, many = scheduler(8, 10), scheduler(8, 10_000)
    assert steps(few) == steps(many)
    assert len(guard(many)) >= 2, "the queue, and who is here"
    steps(many)


def test_waiting_requests_cost_a_look_at_the_load_nothing() -> None:
    few, many = scheduler(8, 10), scheduler(8, 10_000)
    assert many.num_behind == few.num_behind + 2 * (10_000 - 10)
    looks = [instructions(lambda made=made: made.num_behind and None) for made in (few, many)]
    assert looks[0] == looks[1]
    guard(many)
    assert many.num_behind > 10_000


def test_a_step_costs_no_more_than_in_proportion_to_its_rows() -> None:
    few, more, many = (steps(scheduler(rows)) for rows in (16, 64, 256))
    assert many - more <= 1.1 * 4 * (more - few)


def test_a_prompt_is_hashed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = count_hashes(monkeypatch)
    made = scheduler(0, blocks=LONG, budget=32, places=1)
    made.add(request("long", LONG))
    while made.num_behind > 1:
        step(made)
    assert LONG - SIZE <= sum(hashed) <= LONG + SIZE
    hashed.clear()
    for _ in range(4 * SIZE):
        step(made)
    assert sum(hashed) == 4 * SIZE


def test_a_prompt_that_waits_is_hashed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = count_hashes(monkeypatch)
    made = scheduler(8, blocks=60, places=9)
    made.add(request("long", LONG))
    before = sum(hashed)
    for _ in range(10):
        step(made)
    assert made.num_waiting == 1
    assert sum(hashed) - before <= LONG + 10 * 8 * SIZE


def test_a_prompt_whose_keys_came_with_it_is_not_hashed(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = count_hashes(monkeypatch)
    plain = request("long", LONG)
    keys = tuple(chained_keys(root_key(None, ""), plain.prompt, SIZE))
    made = scheduler(0, blocks=LONG, budget=LONG, places=1)
    made.add(Request(id="long", prompt=plain.prompt, params=plain.params, keys=keys))
    while made.num_behind > 1:
        step(made)
    assert sum(hashed) == 0


def test_a_cached_prompt_without_a_place_is_not_looked_up_in_every_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It would cost a step as much as the prompt is long."""
    made = scheduler(0, blocks=LONG // SIZE + 67, budget=LONG, places=9)
    made.add(request("first", LONG, output=1))
    while made.unfinished:
        step(made)
    for number in range(8):
        made.add(request(f"r{number}", 29, number + 1))
    while made.num_running < 8:
        step(made)
    made.add(request("long", LONG))
    step(made)
    assert made.num_waiting == 1
    looked_up = []
    find = Blocks.find
    monkeypatch.setattr(
        Blocks, "find", lambda blocks, key: looked_up.append(key) or find(blocks, key)
    )
    for _ in range(20):
        step(made)
    assert made.num_waiting == 1 and len(looked_up) < LONG // SIZE


def count_hashes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of tokens of each call that hashes, in the scheduler's process."""
    hashed: list[int] = []

    def counting(parent: bytes, tokens: list[int], block_size: int) -> list[bytes]:
        keys = chained_keys(parent, tokens, block_size)
        hashed.append(len(keys) * block_size)
        return keys

    monkeypatch.setattr(kv, "chained_keys", counting)
    return hashed
