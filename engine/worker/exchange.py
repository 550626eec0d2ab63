"""Collectives of ranks on one node, through memory that they share.

    slab   rank 0: half, half | rank 1: half, half | ... | what kernels/cpu/reduce.inc uses

Each rank owns two halves of a slab. It writes its piece into one, rings every other rank through a
pipe, waits for their rings, and reads all pieces; the next round takes the other half. A rank that
has been rung for round k + 1 by all knows that they are done reading round k, so two halves are
enough. A rank that dies closes its pipes, and the others learn it at once.

A sum that is part of a recorded step goes the same way in native code, in memory of its own behind
the halves, without pipes but for that end.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ...kernels import ops
from ...kernels.cpu.ranks import Ranks
from ..errors import ConfigError, WorkerLost
from ..model.mesh import Mesh

HALF_BYTES = 2 << 20
"""Bytes that a rank hands over at once; longer tensors take several rounds."""

REDUCE_BYTES = 1 << 20
"""A rank's part of the memory for recorded sums: its halves stay in a core's cache."""

STALE_S = 3600.0
"""Ranks meet within minutes: an older folder belongs to ranks that were killed meanwhile."""

_SHARED = Path("/dev/shm")
_PREFIX = "shoal-ranks-"


class Exchange:
    """Rank `rank` of `size` on this node. All of them make one, at the same time.

    `share(folder)` is rank 0's folder on every rank; `meet()` returns once all ranks called it.
    Raises ConfigError where the node has too little shared memory.
    """

    def __init__(
        self, rank: int, size: int, share: Callable[[str], str], meet: Callable[[], None]
    ) -> None:
        self.rank, self.size = rank, size
        self._round = 0
        folder = Path(share(_make_folder(size) if rank == 0 else ""))
        others = [other for other in range(size) if other != rank]
        try:
            slab = _map(folder / "slab")
            self._heard = [
                _open(folder / f"{o}-{rank}", os.O_RDONLY | os.O_NONBLOCK) for o in others
            ]
            meet()
            self._rung = [_open(folder / f"{rank}-{o}", os.O_WRONLY) for o in others]
            meet()
        finally:
            if rank == 0:
                shutil.rmtree(folder, ignore_errors=True)
        for pipe in self._heard:
            os.set_blocking(pipe, True)
        halves = size * 2 * HALF_BYTES
        self._slab = slab[:halves].view(size, 2, HALF_BYTES)
        pipes = [*self._heard[:rank], -1, *self._heard[rank:]]
        self._ranks = Ranks(rank, slab[halves:], torch.tensor(pipes, dtype=torch.int32))

    def mesh(self) -> Mesh:
        """These ranks as a model sees them."""
        return Mesh(
            rank=self.rank,
            size=self.size,
            all_reduce=partial(ops.reduce, self._ranks, self.all_reduce),
            all_gather=self.all_gather,
            broadcast=self.broadcast,
        )

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum over ranks, added in their order, in float32 where x is shorter."""
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        for into, parts in self._rounds(x, out.view(-1)):
            total = parts[0].float() if into.is_floating_point() else parts[0].clone()
            for part in parts[1:]:
                total = total.add_(part) if total is not parts[0] else total + part
            into.copy_(total)
        return out

    def all_gather(self, x: Tensor) -> Tensor:
        """Every rank's x, joined along the last dimension."""
        out = x.new_empty(self.size, x.numel())
        first = 0
        for into, parts in self._rounds(x, torch.empty_like(x).view(-1)):
            for row, part in zip(out, parts, strict=True):
                row[first : first + len(into)] = part
            first += len(into)
        return torch.cat(out.view(self.size, *x.shape).unbind(), -1)

    def broadcast(self, x: Tensor) -> Tensor:
        """Rank 0's x."""
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        for into, parts in self._rounds(x, out.view(-1)):
            into.copy_(parts[0])
        return out

    def close(self) -> None:
        """Let the other ranks know that this one leaves; harmless when repeated."""
        for pipe in (*self._heard, *self._rung):
            os.close(pipe)
        self._heard, self._rung = [], []

    def _rounds(self, x: Tensor, out: Tensor) -> Iterator[tuple[Tensor, list[Tensor]]]:
        """Piece after piece of `out`, and what each rank has at its place.

        The pieces of the ranks are good until the next round.
        """
        flat = x.reshape(-1)
        most = HALF_BYTES // x.element_size()
        for first in range(0, len(flat), most):
            mine, into = flat[first : first + most], out[first : first + most]
            half = self._slab[:, self._round & 1, : mine.nbytes].view(x.dtype)
            half[self.rank] = mine
            self._meet()
            yield into, list(half.unbind())

    def _meet(self) -> None:
        self._round += 1
        try:
            for pipe in self._rung:
                os.write(pipe, b".")
            ends = [os.read(pipe, 1) for pipe in self._heard]
        except OSError as error:
            raise WorkerLost(f"a rank beside this one has ended: {error.strerror}") from error
        if b"" in ends:
            raise WorkerLost("a rank beside this one has ended")


def _make_folder(size: int) -> str:
    """A folder with an empty slab and a pipe for each ordered pair of ranks."""
    num_bytes = size * (2 * HALF_BYTES + REDUCE_BYTES)
    base = _SHARED if os.access(_SHARED, os.W_OK) else None
    _sweep(base or Path(tempfile.gettempdir()))
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
    try:
        with (folder / "slab").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, num_bytes)
        for one in range(size):
            for other in range(size):
                if one != other:
                    os.mkfifo(folder / f"{one}-{other}", 0o600)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        if error.errno != errno.ENOSPC:
            raise
        raise ConfigError(
            f"{size} ranks need {num_bytes >> 20} MiB of shared memory in "
            f"{base or folder.parent}, and it is full; make it larger (docker run --shm-size=1g)",
            "tensor_parallel_size",
        ) from error
    return str(folder)


def _sweep(base: Path) -> None:
    """Remove this user's folders that nobody will."""
    for folder in base.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            found = folder.stat()
            if found.st_uid == os.getuid() and time.time() - found.st_mtime > STALE_S:
                shutil.rmtree(folder, ignore_errors=True)


def _map(path: Path) -> Tensor:
    """The slab's bytes; its file may be removed then."""
    with path.open("r+b") as file:
        memory = mmap.mmap(file.fileno(), 0)
    return torch.frombuffer(memory, dtype=torch.uint8)


def _open(path: Path, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC)
