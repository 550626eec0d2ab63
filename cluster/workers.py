"""The process of one rank: a Ray actor that Ray places and ends, and a socket that feeds it.

No plan and no token passes through Ray. The rank lives as long as its socket to the executor: an
executor that dies takes its ranks along, however it died.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import ray

from ..engine.errors import ShoalError
from ..engine.worker.machine import let_threads_sleep, limit_threads, num_cores
from . import rank_wire, wire
from .facts import node_address
from .greeting import introduce
from .sigterm import on_sigterm
from .stall import Stillness, patience_s, stacks

if TYPE_CHECKING:
    from ..engine.worker.runner import Launched
    from ..engine.worker.worker import Worker

CONNECT_S = 10.0
REPORT_S = 0.2
LOOK_S = 0.0002
"""How long a message is waited for before the device is asked again whether it is done."""
MAX_LOADING = 50  # messages on the way to a loaded model

log = logging.getLogger(__name__)


class Place(NamedTuple):
    """Where Ray put a rank."""

    address: str
    node: str
    pid: int
    devices: tuple[str, ...]


class WorkerActor:
    """One rank, first without a seat; `serve` gives it one."""

    def __init__(self) -> None:
        # Ray would say 1 where an actor holds less than two CPUs; the worker sets what it uses.
        limit_threads(num_cores())
        let_threads_sleep()
        self._store: Any = None  # torch's, which only the worker knows

    def place(self) -> Place:
        """Where this process runs, and on which accelerators."""
        context = ray.get_runtime_context()
        devices = tuple(str(i) for i in context.get_accelerator_ids().get("GPU", ()))
        return Place(node_address(), context.get_node_id(), os.getpid(), devices)

    def open_meeting(self, address: str | None) -> str:
        """As rank 0: where the ranks can meet, on one node (None) or at a port of `address`."""
        from ..engine.worker.team import open_meeting

        meeting, self._store = open_meeting(address)
        return meeting

    def serve(self, address: str | tuple[str, int], secret: bytes, rank: int) -> None:
        """Come to the executor at a path or at (host, port), and obey it until it leaves."""
        link = _Link(address, secret, rank, self._store)
        threading.Thread(target=link.obey, name="rank", daemon=True).start()


class _Link:
    """The rank's end of its socket: a thread that computes, and one that tells how it goes."""

    def __init__(
        self, address: str | tuple[str, int], secret: bytes, rank: int, store: Any
    ) -> None:
        self._rank = rank
        self._store = store
        self._sending = threading.Lock()
        self._worker: Worker | None = None
        self._stall_s = 0.0
        self._under_way: deque[Launched] = deque()
        self._leaving = threading.Event()
        self._socket = _connect(address)
        introduce(self._socket, secret, rank_wire.RANKS, str(rank))

    def obey(self) -> None:
        """Run what comes, in order; then end the process."""
        try:
            threading.Thread(target=self._beat, name="rank-beat", daemon=True).start()
            while (body := self._receive()) is not None:
                self._take(rank_wire.from_executor(body))
        except BaseException as error:
            log.critical("rank %s failed", self._rank, exc_info=error)
            message = error.message if isinstance(error, ShoalError) else str(error)
            key = getattr(error, "key", None)
            with contextlib.suppress(OSError):
                self._send(rank_wire.Failed(type(error).__name__, message, key))
            time.sleep(REPORT_S)  # for the log and the report to leave
        os._exit(0)

    def _receive(self) -> bytes | None:
        """The next message. Until it comes, plans are answered as the device is done with them, so
        that it has the next one before the host reads the last.
        """
        while self._under_way:
            if self._under_way[0].done():
                result = self._under_way.popleft().result()
                if self._answers:
                    self._send(rank_wire.Done(result))
            elif select.select([self._socket], [], [], LOOK_S)[0]:
                break
        return rank_wire.receive(self._socket)

    def _take(self, message: rank_wire.ToRank) -> None:
        if isinstance(message, rank_wire.Run):
            self._under_way.append(self._ready().launch(rank_wire.plan_of(message)))
        elif isinstance(message, rank_wire.Control):
            self._send(_answer(self._ready().call, message.method, *message.args))
        else:
            self._start(message)

    def _start(self, message: rank_wire.Start) -> None:
        from ..engine.worker.worker import Worker

        seat, config = message.seat, message.config
        self._answers = seat.answers
        self._worker = Worker(self._loading(), seat=seat, store=self._store)
        capacity = self._worker.start(config)
        self._stall_s = config.stall_timeout
        if message.drains:
            on_sigterm(self._leaving.set)
        self._send(rank_wire.Started(capacity))

    def _ready(self) -> Worker:
        if self._worker is None:
            raise wire.BadFrame("a rank begins with Start")
        return self._worker

    def _loading(self) -> Callable[[int, int], None]:
        """Tells how far loading is, now and then."""
        told = -1

        def tell(done: int, total: int) -> None:
            nonlocal told
            if (part := MAX_LOADING * done // max(total, 1)) > told:
                told = part
                self._send(rank_wire.Loading(done, total))

        return tell

    def _send(self, message: msgspec.Struct) -> None:
        with self._sending:
            self._socket.sendall(rank_wire.frame(message))

    def _beat(self) -> None:
        """Say what the rank does, and whenever it is out of patience that it is stuck; end with the
        executor."""
        gone = select.poll()
        gone.register(self._socket, select.POLLRDHUP | select.POLLHUP | select.POLLERR)
        ticks, still, reports = -1, Stillness(), 0
        while not gone.poll(1000 * rank_wire.BEAT_S):
            if self._worker is None:
                continue
            progress = self._worker.progress
            still_s = still.look(progress.ticks != ticks or progress.operation == "idle")
            ticks, reports = progress.ticks, reports if still_s else 0
            report: msgspec.Struct = rank_wire.Alive(
                progress.step,
                progress.operation,
                progress.finished,
                progress.ticks,
                progress.since_s,
                self._leaving.is_set(),
                progress.expected_s,
            )
            patience = patience_s(self._stall_s, progress.expected_s)
            if self._stall_s and still_s > patience * (1 + reports):
                reports += 1
                report = rank_wire.Stuck(progress.step, progress.operation, still_s, stacks())
            with contextlib.suppress(OSError):
                self._send(report)
        time.sleep(REPORT_S)  # where the rank's own thread sees the end first, it says more
        os._exit(0)


def _connect(address: str | tuple[str, int]) -> socket.socket:
    if isinstance(address, str):
        near = socket.socket(socket.AF_UNIX)
        near.connect(address)
        return near
    far = socket.create_connection(address, timeout=CONNECT_S)
    far.settimeout(None)
    far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return far


def _answer(call: Callable[..., object], method: str, *args: object) -> rank_wire.Answer:
    try:
        return rank_wire.Answer(call(method, *args))
    except Exception as error:
        return rank_wire.Answer(None, f"{type(error).__name__}: {error}")
