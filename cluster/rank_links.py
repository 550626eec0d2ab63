"""The sockets of an executor's ranks: reading them all, and finding out which rank went first."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import ray

from ..engine import errors
from ..engine.errors import ConfigError, LoadError, WorkerLost, WorkerSilent, WorkerStalled
from ..engine.request import RankState
from . import rank_wire, wire
from .workers import Place

GATHER_S = 0.3
"""After a first sign of death, how long others may report: who went first is who is to blame."""
_CHUNK = 1 << 16
_NOT_BEGUN = rank_wire.Alive(-1, "loading", -1)


def rank_words(rank: int, place: Place) -> str:
    """Who a rank is."""
    return f"rank {rank} (node {place.address}, pid {place.pid})"


@dataclass(slots=True, eq=False)
class RankLink:
    """One rank as its executor knows it. `heard`: when it last said anything, `told`: when it last
    told how far it is, which is `last`.
    """

    rank: int
    place: Place
    actor: Any
    connection: socket.socket
    unread: bytearray = field(default_factory=bytearray)
    heard: float = field(default_factory=time.monotonic)
    told: float = 0.0
    last: rank_wire.Alive = _NOT_BEGUN
    failed: rank_wire.Failed | None = None
    stuck: rank_wire.Stuck | None = None
    ended: bool = False

    @property
    def words(self) -> str:
        """Who it is."""
        return rank_words(self.rank, self.place)

    @property
    def waits(self) -> bool:
        """Whether it is stuck because another stage sends it nothing."""
        return self.stuck is not None and "waiting" in self.stuck.operation

    @property
    def adds_up(self) -> bool:
        """Whether it is stuck in a sum over the ranks of its stage: one that does not come to it
        holds up all the others.
        """
        return self.stuck is not None and self.stuck.operation.endswith(", reduce")

    def state(self, now: float) -> str:
        """The last that is known of it."""
        if self.failed is not None:
            return f"{self.failed.error}: {self.failed.message}"
        words = f"at step {self.last.step}, {self.last.operation}"
        if self.stuck is not None:
            words += f", without progress for {self.stuck.seconds:.1f} s"
        return f"{words}, heard {now - self.heard:.1f} s ago" + (", gone" if self.ended else "")

    def rank_state(self) -> RankState:
        """Who it is and what it does, as of its last sign of life."""
        done_s = self.last.finished_s
        gpus = ",".join(f"cuda:{device}" for device in self.place.devices)
        return RankState(
            rank=self.rank,
            node=self.place.address,
            pid=self.place.pid,
            device=gpus or "cpu",
            step=self.last.step,
            operation=self.last.operation,
            ticks=self.last.ticks,
            last_step_s=None if done_s is None else done_s + time.monotonic() - self.told,
            leaving=self.last.leaving,
            expected_s=self.last.expected_s,
        )

    def read(self) -> list[rank_wire.ToExecutor]:
        """What has come; `ended` is set where nothing will. Raises BadFrame."""
        try:
            data = self.connection.recv(_CHUNK)
        except OSError:
            data = b""
        self.ended = not data
        self.heard = time.monotonic()
        self.unread += data
        bodies = iter(partial(rank_wire.take_frame, self.unread), None)
        messages = [rank_wire.from_rank(body) for body in bodies]
        for message in messages:
            if isinstance(message, rank_wire.Alive):
                self.last, self.told = message, self.heard
            elif isinstance(message, rank_wire.Failed):
                self.failed = message
            elif isinstance(message, rank_wire.Stuck):
                self.stuck = message
        return messages

    def cut(self) -> None:
        """Part from one that may not listen any more: a stopped one obeys the kernel alone."""
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(Exception):
            if not self.ended and self.place.node == ray.get_runtime_context().get_node_id():
                os.kill(self.place.pid, signal.SIGKILL)

    def end(self) -> None:
        """End it wherever it is. Waits for Ray's head, perhaps for as long as that is away."""
        with contextlib.suppress(Exception):
            ray.kill(self.actor, no_restart=True)


def messages(
    ranks: Sequence[RankLink], stall_s: float, until: Callable[[], bool]
) -> Iterator[tuple[RankLink, rank_wire.ToExecutor]]:
    """What the ranks say, as it comes, as long as `until` is false.

    Raises what `blame` makes of the first rank that ends, fails, gets stuck, or, once it has begun,
    falls silent for `stall_s`.
    """
    with selectors.DefaultSelector() as selector:
        for rank in ranks:
            selector.register(rank.connection, selectors.EVENT_READ, rank)
        while not until():
            for key, _ in selector.select(rank_wire.BEAT_S):
                for message in key.data.read():
                    yield key.data, message
            now = time.monotonic()
            _excuse(ranks)
            if any(_troubled(rank, now, stall_s) for rank in ranks):
                yield from _gather(ranks)
                if any(_troubled(rank, time.monotonic(), stall_s) for rank in ranks):
                    raise blame(ranks)


def _excuse(ranks: Sequence[RankLink]) -> None:
    """A long step of one stage is progress, and no stall of those that wait for its end.

    They say so again after another while.
    """
    for rank in ranks:
        if rank.stuck is not None and rank.waits:
            step, before = rank.stuck.step, ranks[: ranks.index(rank)]
            if any(other.stuck is None and other.last.finished < step for other in before):
                rank.stuck = None


def _troubled(rank: RankLink, now: float, stall_s: float) -> bool:
    silent = stall_s and rank.last is not _NOT_BEGUN and now - rank.heard > stall_s
    return bool(rank.ended or rank.failed or rank.stuck or silent)


_KINDS = {"is silent": WorkerSilent, "is stuck": WorkerStalled}


def blame(ranks: Sequence[RankLink]) -> Exception:
    """The error to raise: which rank went first, where, and at what."""
    for rank in ranks:
        kind = getattr(errors, rank.failed.error, None) if rank.failed else None
        if rank.failed is not None and kind in (ConfigError, LoadError):
            return kind(rank.failed.message, rank.failed.key)  # type: ignore[no-any-return]
    now = time.monotonic()
    for found, what in (
        ([r for r in ranks if r.ended and r.failed is None], "ended without a word"),
        ([r for r in ranks if r.failed and r.failed.error != WorkerLost.__name__], "failed"),
        ([r for r in ranks if now - r.heard > 3 * rank_wire.BEAT_S and not r.ended], "is silent"),
        ([r for r in ranks if r.stuck and not (r.waits or r.adds_up)], "is stuck"),
        ([r for r in ranks if r.stuck and not r.waits], "is stuck"),
        (ranks, "is lost"),
    ):
        if found:
            first, others = found[0], [r for r in ranks if r is not found[0]]
            told = "; ".join(f"rank {other.rank} {other.state(now)}" for other in others)
            words = f"{first.words} {what}: {first.state(now)} [{told}]"
            return _KINDS.get(what, WorkerLost)(words)
    raise AssertionError("there is a rank")


def _gather(ranks: Sequence[RankLink]) -> Iterator[tuple[RankLink, rank_wire.ToExecutor]]:
    """Give all a moment to say what they saw, or that they are there: on a machine that is busy
    one may have had no turn.
    """
    until = time.monotonic() + GATHER_S
    with selectors.DefaultSelector() as selector:
        for rank in ranks:
            if not rank.ended:
                selector.register(rank.connection, selectors.EVENT_READ, rank)
        while selector.get_map() and (left := until - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                rank, heard = key.data, key.data.heard
                with contextlib.suppress(wire.BadFrame):
                    for message in rank.read():
                        yield rank, message
                if rank.ended:
                    rank.heard = heard
                    selector.unregister(key.fileobj)
