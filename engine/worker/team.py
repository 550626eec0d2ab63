"""How one rank reaches the others: slices of a layer, the stages before and behind, and all."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
import time
from collections import deque
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import FileStore, Store, TCPStore

from ...kernels import ops
from ..errors import WorkerLost
from ..model.mesh import Mesh
from ..seat import Seat
from .device import Device
from .exchange import Exchange
from .machine import interface_of

MEETING_S = 120.0
"""How long ranks wait for each other at first; a stuck one later is the executor's business."""

_REHEARSALS = 20
_FOREVER = timedelta(days=365)


class Team:
    """The ranks of one engine, as one of them reaches them; `alone` and `join` make one.

    `mesh` are the ranks that share its layers.
    """

    def __init__(self, seat: Seat, mesh: Mesh, exchange: Exchange | None = None) -> None:
        self.seat = seat
        self.mesh = mesh
        self._exchange = exchange
        self._sending: deque[tuple[dist.Work, Tensor]] = deque()

    def least(self, value: int) -> int:
        """The least that any rank of the engine gives."""
        if self.seat.size == 1:
            return value
        found: list[int | None] = [None] * self.seat.size
        dist.all_gather_object(found, value)
        return min(each for each in found if each is not None)

    def send(self, hidden: Tensor) -> None:
        """Hand hidden states to the next stage, without waiting until they are taken."""
        work = dist.isend(hidden, self.seat.rank + self.seat.tensor_size)
        assert work is not None
        self._sending.append((work, hidden))
        while len(self._sending) > self.seat.num_stages:
            self._sending.popleft()[0].wait()

    def receive(self, hidden: Tensor) -> Tensor:
        """Wait for what the stage before hands over, and put it into `hidden`."""
        dist.recv(hidden, self.seat.rank - self.seat.tensor_size)
        return hidden

    def close(self) -> None:
        """Leave; harmless when repeated."""
        if self._exchange is not None:
            self._exchange.close()
        if self.seat.size > 1 and dist.is_initialized():
            with contextlib.suppress(RuntimeError):
                dist.destroy_process_group()


def alone() -> Team:
    """A team of one."""
    return Team(Seat(), Mesh())


def open_meeting(address: str | None) -> tuple[str, Store]:
    """Where ranks can meet: a private file on this node, or a port of `address`. Kept by rank 0."""
    if address is None:
        place = str(Path(tempfile.mkdtemp(prefix="shoal-meet-")) / "store")
        return place, FileStore(place)
    listener = socket.create_server((address, 0))
    place = f"{address}:{listener.getsockname()[1]}"
    return place, _server(place, listener.detach())


def join(
    seat: Seat, device: Device, store: Store | None = None, interface: str | None = None
) -> Team:
    """Meet the other ranks; each calls it from a process of its own.

    Rank 0 brings the store that `open_meeting` gave it. Ranks of several nodes talk over
    `interface`, by default the one that has the node's address. Raises ConfigError.
    """
    if seat.size == 1:
        return alone()
    inside = seat.one_node and not interface  # one that is not there is refused, needed or not
    found = "lo" if inside else interface_of(seat.node, interface)
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(name, "lo" if seat.one_node else found)
    dist.init_process_group(
        device.backend,
        store=store or _client(seat.meeting, seat.one_node),
        rank=seat.rank,
        world_size=seat.size,
        timeout=_FOREVER,
    )
    team = _team(seat, device, [_group(seat, stage) for stage in range(seat.num_stages)])
    dist.barrier()
    if seat.one_node and seat.rank == 0:
        shutil.rmtree(Path(seat.meeting).parent, ignore_errors=True)
    return team


def rehearse(seat: Seat, device: Device, store: Store | None, interface: str | None) -> float:
    """Meet as in `join`, add up 16 KiB with the ranks of the same layers, and leave again.

    Seconds that a sum takes. Raises WorkerLost where one is wrong.
    """
    team = join(seat, device, store, interface)
    try:
        team.least(seat.rank)
        mine = torch.full((4096,), float(seat.tensor + 1), device=device.place)
        expected = seat.tensor_size * (seat.tensor_size + 1) / 2
        began = time.perf_counter()
        for _ in range(_REHEARSALS):
            found = float(team.mesh.all_reduce(mine.clone())[0])
            if found != expected:
                raise WorkerLost(
                    f"the sum over {seat.tensor_size} ranks is {found}, not {expected}"
                )
        return (time.perf_counter() - began) / _REHEARSALS
    finally:
        team.close()


def _team(seat: Seat, device: Device, groups: list[dist.ProcessGroup]) -> Team:
    group = groups[seat.stage]
    if seat.tensor_size == 1:
        return Team(seat, Mesh())
    if device.divides_node and seat.mates_are_near:
        exchange = Exchange(
            seat.tensor,
            seat.tensor_size,
            lambda folder: _from_first(folder, seat, group),
            lambda: dist.barrier(group),
        )
        return Team(seat, exchange.mesh(), exchange)
    return Team(seat, _mesh(seat, device, group))


def _client(meeting: str, file: bool) -> Store:
    if file:
        return FileStore(meeting)
    host, port = meeting.rsplit(":", 1)
    return TCPStore(host, int(port), timeout=timedelta(seconds=MEETING_S))


def _server(meeting: str, listening: int) -> Store:
    """A store behind a socket that listens on one address alone."""
    host, port = meeting.rsplit(":", 1)
    return TCPStore(
        host,
        int(port),
        is_master=True,
        wait_for_workers=False,
        timeout=timedelta(seconds=MEETING_S),
        master_listen_fd=listening,
    )


def _group(seat: Seat, stage: int) -> dist.ProcessGroup:
    """The ranks of a stage; every rank makes every group, in the same order."""
    first = stage * seat.tensor_size
    group: Any = dist.new_group(list(range(first, first + seat.tensor_size)), timeout=_FOREVER)
    return group  # type: ignore[no-any-return]


def _from_first(word: str, seat: Seat, group: dist.ProcessGroup) -> str:
    """What the first rank of the group said."""
    words = [word]
    dist.broadcast_object_list(words, src=seat.mates[0], group=group)
    return words[0]


def _mesh(seat: Seat, device: Device, group: dist.ProcessGroup) -> Mesh:
    """Ranks that share no memory."""

    def parts(x: Tensor) -> list[Tensor]:
        x = x.contiguous()
        found = [torch.empty_like(x) for _ in range(seat.tensor_size)]
        dist.all_gather(found, x, group=group)
        return found

    def in_order(x: Tensor) -> Tensor:
        first, *others = parts(x)
        total = first.float() if x.is_floating_point() else first
        for other in others:
            total = total + other
        return total.to(x.dtype)

    def fast(x: Tensor) -> Tensor:
        dist.all_reduce(x, group=group)
        return x

    def broadcast(x: Tensor) -> Tensor:
        dist.broadcast(x, src=seat.mates[0], group=group)
        return x

    return Mesh(
        rank=seat.tensor,
        size=seat.tensor_size,
        all_reduce=partial(ops.across, in_order) if device.adds_in_order else fast,
        all_gather=lambda x: torch.cat(parts(x), -1),
        broadcast=broadcast,
    )
