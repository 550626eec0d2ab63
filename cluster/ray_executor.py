"""The executor of an engine of several ranks: one Ray actor a rank, one socket to each.

caller's thread    starts the ranks; then `submit` writes a plan to every socket, and `collect`
                   waits for the result that the reading thread hands on
reading thread     reads all sockets, hears signs of life, and finds out who is to blame
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import logging
import math
import os
import secrets
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ..engine.checkpoint import check_ranks, checkpoint_facts
from ..engine.config import EngineConfig
from ..engine.errors import LoadError, WorkerLost
from ..engine.executor import Capacity
from ..engine.plan import Plan, Result
from ..engine.request import RankState
from ..engine.seat import Seat, num_ranks
from . import placement, rank_wire, wire
from .facts import node_address
from .greeting import greet
from .rank_links import GATHER_S, RankLink, messages, rank_words
from .shared_ray import shared_ray, starts_own
from .workers import Place, WorkerActor

JOIN_S = 60.0
CHECK_S = 0.5
"""While ranks are awaited, how often it is asked whether they still live."""

log = logging.getLogger(__name__)


class RayExecutor:
    """Runs plans on `tensor_parallel_size * pipeline_parallel_size` ranks.

    Within a Serve deployment the ranks take the places that its placement group has for them;
    elsewhere they get a group of their own, and where no Ray runs yet, a Ray of their own. With
    stages, as many plans are under way as keep every stage busy, and the host hands on the tokens.
    `on_load` is told (bytes done, bytes in all) of rank 0; `drains` as in `executor_for`.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        strategy: str = "PACK",
        on_load: Callable[[int, int], None] | None = None,
        drains: bool = False,
    ) -> None:
        stages = config.pipeline_parallel_size
        self.resident = stages == 1
        self.depth = stages + 1 if stages > 1 else 2 if config.async_scheduling else 1
        self._config = config
        self._strategy = strategy
        self._on_load = on_load
        self._drains = drains
        self._ranks: list[RankLink] = []
        self._stack = contextlib.ExitStack()
        self._results: SimpleQueue[Result | WorkerLost] = SimpleQueue()
        self._answers: SimpleQueue[tuple[int, rank_wire.Answer] | WorkerLost] = SimpleQueue()
        self._lost: WorkerLost | None = None
        self._on_lost: Callable[[WorkerLost], None] = lambda lost: None
        self._closing = threading.Event()

    def start(self, config: EngineConfig) -> Capacity:
        """Place the ranks, let them load, and say what came of it.

        Raises ConfigError, LoadError, WorkerLost; nothing is left behind then.
        """
        atexit.register(self.close)  # before Ray's own end, which looks like the death of the ranks
        try:
            if starts_own():
                _check_here(config)
            self._stack.enter_context(shared_ray())
            self._join(self._place())
            capacity = self._load(config)
            if capacity.overlaps and config.async_scheduling is None:
                self.depth = max(self.depth, 2)
            return capacity
        except BaseException:
            self.close()
            raise

    def watch(self, on_lost: Callable[[WorkerLost], None]) -> None:
        """Have `on_lost` called, on another thread, when a rank is lost."""
        self._on_lost = on_lost
        threading.Thread(target=self._read, name="ranks", daemon=True).start()

    def submit(self, plan: Plan) -> None:
        """Send a plan to every rank. Raises WorkerLost."""
        self._send(rank_wire.run_of(plan))

    def supply(self, step: int, masks: object) -> None:
        """No plan announces anything yet, so nothing can be handed in."""
        raise AssertionError(f"plan {step} announced nothing that could be supplied")

    def collect(self) -> Result:
        """The result of the oldest plan under way. Raises WorkerLost."""
        result = self._results.get()
        if isinstance(result, WorkerLost):
            raise result
        return result

    def call(self, method: str, *args: object) -> list[object]:
        """Run a control method on every rank, behind the plans submitted so far.

        Raises WorkerLost, and ValueError with what it raised there.
        """
        self._send(rank_wire.Control(method, list(args)))
        answers: dict[int, object] = {}
        for _ in self._ranks:
            told = self._answers.get()
            if isinstance(told, WorkerLost):
                raise told
            rank, answer = told
            if answer.error is not None:
                raise ValueError(f"{self._ranks[rank].words}: {answer.error}")
            answers[rank] = answer.value
        return [answers[rank.rank] for rank in self._ranks]

    def ranks(self) -> list[RankState]:
        """Who the ranks are and how far they have come, as of their last signs of life."""
        return [rank.rank_state() for rank in tuple(self._ranks)]

    def close(self) -> None:
        """End the ranks and give their places back; harmless when repeated."""
        atexit.unregister(self.close)
        self._closing.set()
        for rank in self._ranks:
            with contextlib.suppress(OSError):
                rank.connection.shutdown(socket.SHUT_RDWR)
            rank.connection.close()
        self._ranks = []
        self._stack.close()

    # Placing and meeting.

    def _place(self) -> list[tuple[Any, Place]]:
        """The actors, in the order of their ranks. Raises ConfigError."""
        config = self._config
        gpus = placement.wants_gpus(config)
        placement.check_enough(config, gpus)
        asked = placement.bundles(config, gpus, self._strategy)
        group = placement.own_group(asked, num_ranks(config))
        if group is None:
            group, skipped = placement.reserve(asked, self._strategy), 0
            self._stack.callback(remove_placement_group, group)
        else:
            skipped, asked = placement.of_ranks(group.bundle_specs)
        width = num_ranks(config) // len(asked)
        bundle_of = [bundle for bundle in range(len(asked)) for _ in range(width)]
        actors = [self._actor(group, skipped + at, asked[-1], width) for at in bundle_of]
        try:
            places = ray.get([actor.place.remote() for actor in actors], timeout=JOIN_S)
        except ray.exceptions.RayError as error:
            raise WorkerLost(f"the ranks did not start within {JOIN_S:g} s: {error}") from error
        chosen = placement.order(places, bundle_of)
        return [(actors[index], places[index]) for index in chosen]

    def _actor(
        self, group: PlacementGroup, bundle: int, asked: placement.Bundle, width: int
    ) -> Any:
        """One rank's process, in its bundle of the group."""
        actor = (
            ray.remote(WorkerActor)
            .options(
                num_cpus=asked["CPU"] / width,
                num_gpus=asked.get("GPU", 0) / width,
                max_restarts=0,
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    placement_group=group, placement_group_bundle_index=bundle
                ),
            )
            .remote()
        )
        self._stack.callback(_kill, actor)
        return actor

    def _join(self, placed: list[tuple[Any, Place]]) -> None:
        """Let each rank come to a socket of its own. Raises WorkerLost."""
        here = node_address()
        near = all(place.address == here for _, place in placed)
        secret = secrets.token_bytes(32)
        with _listen(None if near else here, len(placed)) as (listener, address):
            called = [actor.serve.remote(address, secret, r) for r, (actor, _) in enumerate(placed)]
            coming = dict(enumerate(placed))
            until = time.monotonic() + JOIN_S
            while coming:
                listener.settimeout(CHECK_S)
                try:
                    connection, _ = listener.accept()
                    connection.settimeout(None)
                    name = greet(connection, secret, rank_wire.RANKS)
                    actor, place = coming.pop(int(name or -1))
                except TimeoutError:
                    _check_coming(called, placed)
                    if time.monotonic() < until:
                        continue
                    missing = ", ".join(f"{r} on {p.address}" for r, (_, p) in coming.items())
                    raise WorkerLost(
                        f"ranks did not come to their executor at {address} within {JOIN_S:g} s: "
                        f"{missing}; can that node reach this one?"
                    ) from None
                except (wire.BadFrame, OSError, ValueError, KeyError) as error:
                    log.warning("hung up on a stranger: %s", error)
                    connection.close()
                    continue
                self._ranks.append(RankLink(int(name or 0), place, actor, connection))
        self._ranks.sort(key=lambda rank: rank.rank)

    def _load(self, config: EngineConfig) -> Capacity:
        """Have all ranks load. Raises what one of them raised."""
        nodes = tuple(rank.place.address for rank in self._ranks)
        one_node = len(set(nodes)) == 1
        first = self._ranks[0]
        try:
            opened = first.actor.open_meeting.remote(None if one_node else nodes[0])
            meeting = ray.get(opened, timeout=JOIN_S)
        except ray.exceptions.RayError as error:
            raise WorkerLost(f"{first.words} opened no meeting for the ranks: {error}") from error
        if one_node:  # ranks that met have removed it; those that failed before have not
            self._stack.callback(shutil.rmtree, os.path.dirname(meeting), ignore_errors=True)
        for rank in self._ranks:
            seat = Seat(
                rank=rank.rank,
                tensor_size=config.tensor_parallel_size,
                num_stages=config.pipeline_parallel_size,
                nodes=nodes,
                meeting=meeting,
            )
            rank.connection.sendall(rank_wire.frame(rank_wire.Start(config, seat, self._drains)))
        found: dict[int, Capacity] = {}
        bound_s = config.load_timeout or math.inf
        until = time.monotonic() + bound_s

        def over() -> bool:
            return time.monotonic() > until or self._closing.is_set()

        for rank, message in messages(self._ranks, config.stall_timeout, over):
            if isinstance(message, rank_wire.Started):
                found[rank.rank] = message.capacity
                if len(found) == len(self._ranks):
                    break
            elif isinstance(message, rank_wire.Loading) and rank.rank == 0 and self._on_load:
                self._on_load(message.done, message.total)
        if late := [rank.words for rank in self._ranks if rank.rank not in found]:
            raise LoadError(
                f"not loaded within {bound_s:g} s: {', '.join(late)}; see the logs there for where "
                f"it hangs, or raise load_timeout"
            )
        return _together(found, self._ranks)

    def _messages(self) -> Iterator[tuple[RankLink, rank_wire.ToExecutor]]:
        return messages(self._ranks, self._config.stall_timeout, self._closing.is_set)

    def _read(self) -> None:
        """Hand on what comes, until a rank is lost or the executor is closed."""
        try:
            for rank, message in self._messages():
                if isinstance(message, rank_wire.Done):
                    self._results.put(message.result)
                elif isinstance(message, rank_wire.Answer):
                    self._answers.put((rank.rank, message))
        except Exception as error:
            lost = error if isinstance(error, WorkerLost) else WorkerLost(str(error))
            if not self._closing.is_set():
                self._lose(lost)

    def _lose(self, lost: WorkerLost) -> None:
        for rank in self._ranks:
            if rank.stuck is not None:
                log.error("%s:\n%s", rank.words, rank.stuck.stacks)
            rank.cut()
        self._lost = lost
        for _ in range(self.depth + 1):
            self._results.put(lost)
        for _ in self._ranks:
            self._answers.put(lost)
        self._on_lost(lost)
        for rank in self._ranks:
            rank.end()

    def _send(self, message: Any) -> None:
        """One frame for every rank. Raises WorkerLost."""
        if self._lost is not None:
            raise self._lost
        frame = rank_wire.frame(message)
        for rank in self._ranks:
            try:
                rank.connection.sendall(frame)
            except OSError:
                with contextlib.suppress(Empty):
                    lost = self._results.get(timeout=2 * GATHER_S)
                    if isinstance(lost, WorkerLost):
                        raise lost from None
                raise WorkerLost(f"{rank.words} does not take its plans") from None


def _together(found: dict[int, Capacity], ranks: list[RankLink]) -> Capacity:
    """What the ranks found, as one. Raises LoadError where they hold different weights."""
    first = found[0]
    for rank in ranks:
        if found[rank.rank].digest != first.digest:
            raise LoadError(
                f"{rank.words} has other weights than {ranks[0].words}: the model's folder "
                f"differs from node to node; copy it again or serve it by its hub name"
            )
    nodes = list(dict.fromkeys(rank.place.address for rank in ranks))
    words = f"{len(ranks)} on {len(nodes)} node{'s'[: len(nodes) > 1]} ({', '.join(nodes)})"
    last = found[ranks[-1].rank]
    table = (*first.table, ("ranks", words))
    return dataclasses.replace(first, device=last.device, table=table)


@contextlib.contextmanager
def _listen(
    host: str | None, backlog: int
) -> Iterator[tuple[socket.socket, str | tuple[str, int]]]:
    """A listener for ranks: in a private folder of this node, or on an address of it."""
    if host is not None:
        with socket.create_server((host, 0), backlog=backlog) as listener:
            yield listener, (host, listener.getsockname()[1])
        return
    folder = tempfile.mkdtemp(prefix="shoal-ranks-")
    try:
        path = os.path.join(folder, "executor")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen(backlog)
            yield listener, path
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _check_here(config: EngineConfig) -> None:
    """What this machine alone tells, before Ray is started on it. Raises ConfigError, LoadError."""
    there = placement.gpus_here()
    if placement.wants_gpus(config, there):
        placement.check_visible(config, there)
    check_ranks(config, checkpoint_facts(config))


def _check_coming(called: list[Any], placed: list[tuple[Any, Place]]) -> None:
    """Raise WorkerLost for a rank that has died, or failed, on its way to the executor."""
    done, _ = ray.wait(called, num_returns=len(called), timeout=0)
    for answer in done:
        try:
            ray.get(answer)
        except ray.exceptions.RayError as error:
            rank = called.index(answer)
            words = rank_words(rank, placed[rank][1])
            raise WorkerLost(f"{words} did not come to its executor: {error}") from error


def _kill(actor: Any) -> None:
    with contextlib.suppress(Exception):
        ray.kill(actor, no_restart=True)
