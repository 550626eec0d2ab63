"""What crosses the socket between an executor and one of its ranks: typed msgpack in frames.

    rank                                  executor
    (greeting, as in `wire`)
                                      <-  Start, then Run and Control in order
    Loading, Started, Done, Answer,
    Failed, Alive, Stuck              ->

A frame is one of `wire`, but that its length takes eight bytes and has no bound: both sides are one
engine and have proved it, and no request may cost the others theirs.

The end of the socket is the end of the rank, on both sides.
"""

from __future__ import annotations

import dataclasses
import math
import socket
import typing
from typing import Any

import msgspec

from ..engine import plan as plans
from ..engine.config import EngineConfig
from ..engine.executor import Capacity
from ..engine.plan import Plan, Result
from ..engine.request import SamplingParams, fold_seed, with_values
from ..engine.seat import Seat
from . import greeting
from .greeting import Roles
from .wire import Body, decoded, framed
from .wire import take_frame as take_any_frame

RANKS = Roles(comer="rank", host="executor")
BEAT_S = 0.5
HEAD = 8

_GREATEST = (1 << 63) - 1
"""More than any vocabulary or context has; msgpack ends soon after it."""


class Start(msgspec.Struct, tag="start", frozen=True, array_like=True):
    """Load and size. `drains`: SIGTERM is not the rank's end, but a word for its executor."""

    config: EngineConfig
    seat: Seat
    drains: bool = False


_Entered: Any = msgspec.defstruct(
    "_Entered",
    [*(typing.get_type_hints(plans.Start) | {"params": int}).items()],
    frozen=True,
    array_like=True,
)


class Run(msgspec.Struct, tag="run", frozen=True, array_like=True):
    """Compute a plan. What starts lies beside it, `params` by their place in a list: those of
    siblings come once. See `run_of` and `plan_of`.
    """

    plan: Plan
    starts: list[_Entered] = []
    params: list[SamplingParams] = []


class Control(msgspec.Struct, tag="control", frozen=True, array_like=True):
    """Run a control method."""

    method: str
    args: list[Any]


class Loading(msgspec.Struct, tag="loading", frozen=True, array_like=True):
    """How many bytes of the weights are read."""

    done: int
    total: int


class Started(msgspec.Struct, tag="started", frozen=True, array_like=True):
    """The rank is ready."""

    capacity: Capacity


class Done(msgspec.Struct, tag="done", frozen=True, array_like=True):
    """A plan's result; only the rank that samples sends one."""

    result: Result


class Answer(msgspec.Struct, tag="answer", frozen=True, array_like=True):
    """What a control method returned, or why it raised."""

    value: Any
    error: str | None = None


class Failed(msgspec.Struct, tag="failed", frozen=True, array_like=True):
    """The rank cannot go on: the error's name, its words, and its key where it has one."""

    error: str
    message: str
    key: str | None


class Alive(msgspec.Struct, tag="alive", frozen=True, array_like=True):
    """A sign of life: the last plan begun, what is being done of it, the last plan done and when,
    and a number that grows with every word of progress. `leaving`: it was told to end.
    `expected_s` as in `RankState`.
    """

    step: int
    operation: str
    finished: int
    ticks: int = 0
    finished_s: float | None = None
    leaving: bool = False
    expected_s: float = 0.0


class Stuck(msgspec.Struct, tag="stuck", frozen=True, array_like=True):
    """No progress for `seconds`, and the stacks of the rank's threads."""

    step: int
    operation: str
    seconds: float
    stacks: str


ToRank = Start | Run | Control
ToExecutor = Loading | Started | Done | Answer | Failed | Alive | Stuck

_from_executor = msgspec.msgpack.Decoder(ToRank)
_from_rank = msgspec.msgpack.Decoder(ToExecutor)


def frame(message: msgspec.Struct) -> bytearray:
    """A message ready to be sent."""
    return framed(message, HEAD)


def take_frame(unread: bytearray) -> bytes | None:
    """See `wire.take_frame`."""
    return take_any_frame(unread, math.inf, HEAD)


def receive(connection: socket.socket) -> bytes | None:
    """The next frame's message; None at the end. Raises OSError."""
    return greeting.receive(connection, math.inf, head=HEAD)


def run_of(plan: Plan) -> Run:
    """The message that carries a plan."""
    if not plan.started:
        return Run(plan)
    places: dict[int, int] = {}
    params: list[SamplingParams] = []
    starts = []
    for start in plan.started:
        place = places.setdefault(id(start.params), len(params))
        if place == len(params):
            params.append(_for_ranks(start.params))
        starts.append(_Entered(**start._asdict() | {"params": place}))
    return Run(dataclasses.replace(plan, started=()), starts, params)


def plan_of(run: Run) -> Plan:
    """The plan that a message carries."""
    if not run.starts:
        return run.plan
    started = (
        plans.Start(**msgspec.structs.asdict(start) | {"params": run.params[start.params]})
        for start in run.starts
    )
    return dataclasses.replace(run.plan, started=tuple(started))


def _for_ranks(params: SamplingParams) -> SamplingParams:
    """Without what only the host looks at, and with integers that msgpack can hold."""

    def fitting(count: int | None) -> int | None:
        return None if count is None else min(count, _GREATEST)

    return with_values(
        params,
        stop=(),
        bad_words=(),
        max_tokens=None,
        truncate_prompt_tokens=None,
        seed=None if params.seed is None else fold_seed(params.seed),
        top_k=min(params.top_k, _GREATEST),
        min_tokens=min(params.min_tokens, _GREATEST),
        logprobs=fitting(params.logprobs),
        prompt_logprobs=fitting(params.prompt_logprobs),
    )


def from_executor(body: Body) -> ToRank:
    """The message that an executor sent. Raises BadFrame."""
    message: ToRank = decoded(_from_executor, body, "an executor")
    return message


def from_rank(body: Body) -> ToExecutor:
    """The message that a rank sent. Raises BadFrame."""
    message: ToExecutor = decoded(_from_rank, body, "a rank")
    return message
