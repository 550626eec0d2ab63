"""What crosses the socket between an executor and one of its ranks: typed msgpack in frames.

    rank                                  executor
    (greeting, as in `wire`)
                                      <-  Start, then Run and Control in order
    Loading, Started, Done, Answer,
    Failed, Alive, Stuck              ->

The end of the socket is the end of the rank, on both sides.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ..engine.config import EngineConfig
from ..engine.executor import Capacity
from ..engine.plan import Plan, Result
from ..engine.seat import Seat
from .greeting import Roles
from .wire import Body, decoded

RANKS = Roles(comer="rank", host="executor")
BEAT_S = 0.5


class Start(msgspec.Struct, tag="start", frozen=True, array_like=True):
    """Load and size. `drains`: SIGTERM is not the rank's end, but a word for its executor."""

    config: EngineConfig
    seat: Seat
    drains: bool = False


class Run(msgspec.Struct, tag="run", frozen=True, array_like=True):
    """Compute a plan."""

    plan: Plan


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


def from_executor(body: Body) -> ToRank:
    """The message that an executor sent. Raises BadFrame."""
    message: ToRank = decoded(_from_executor, body, "an executor")
    return message


def from_rank(body: Body) -> ToExecutor:
    """The message that a rank sent. Raises BadFrame."""
    message: ToExecutor = decoded(_from_rank, body, "a rank")
    return message
