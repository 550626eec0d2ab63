"""A process on a node that answers for it: its clock, its room, its network."""

from __future__ import annotations

import os
import shutil
import socket
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

from ...engine.checkpoint import check_ranks
from ...engine.config import EngineConfig
from ...engine.errors import ConfigError, LoadError
from ...engine.model.config import model_facts

PINGS = 50
LOAD_BYTES = 32 << 20
PIECE = 1 << 20
PATIENCE_S = 10.0
SHARED = Path("/dev/shm")


class Room(NamedTuple):
    """Free bytes of a place."""

    path: str
    free: int
    total: int


class Line(NamedTuple):
    """How well a node reaches another: median round trip, and bytes a second one way."""

    round_trip_s: float
    bytes_per_s: float


class Probe:
    """An actor of one node."""

    def now(self) -> float:
        """Its clock, in seconds since 1970."""
        return time.time()

    def interfaces(self) -> dict[str, str]:
        """IPv4 addresses by the names of the interfaces that have them."""
        from ...engine.worker.machine import addresses

        return {name: address for name, address in addresses()}

    def shared_memory(self) -> Room | None:
        """None where there is no such folder."""
        return _room(SHARED) if SHARED.is_dir() else None

    def disks(self, config: EngineConfig) -> list[Room]:
        """Where Ray keeps its session, and where models are kept."""
        cache = config.download_dir or os.environ.get("HF_HOME") or "~/.cache"
        return [_room(Path(tempfile.gettempdir())), _room(Path(cache).expanduser())]

    def checkpoint(self, config: EngineConfig) -> dict[str, int] | None:
        """Bytes of each file of the model, as far as it is here; None where nothing is."""
        folder = _folder(config)
        if folder is None:
            return None
        return {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}

    def misfit(self, config: EngineConfig) -> str | None:
        """Why ranks cannot share the model that is here; None where they can, or nobody knows."""
        folder = _folder(config)
        try:
            if folder is not None:
                check_ranks(config, model_facts(folder))
        except ConfigError as error:
            return error.message
        except LoadError:  # whoever loads it says why
            return None
        return None

    def listen(self, host: str) -> int:
        """Wait for one other probe at a port of this node."""
        listener = socket.create_server((host, 0))
        listener.settimeout(PATIENCE_S)
        threading.Thread(target=_answer, args=(listener,), daemon=True).start()
        return int(listener.getsockname()[1])

    def reach(self, host: str, port: int) -> Line:
        """Exchange bytes with a probe that listens. Raises OSError."""
        with socket.create_connection((host, port), timeout=PATIENCE_S) as line:
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            trips = []
            for _ in range(PINGS):
                began = time.perf_counter()
                line.sendall(b".")
                line.recv(1)
                trips.append(time.perf_counter() - began)
            piece = bytes(PIECE)
            began = time.perf_counter()
            for _ in range(LOAD_BYTES // PIECE):
                line.sendall(piece)
            line.recv(1)  # all of it has been read
            return Line(statistics.median(trips), LOAD_BYTES / (time.perf_counter() - began))


def _folder(config: EngineConfig) -> Path | None:
    """Where the model lies on this node."""
    from ...engine.model.hub import cached_models

    folder = Path(config.model)
    if folder.is_dir():
        return folder
    cached = [m for m in cached_models(config.download_dir) if m.name == config.model]
    return next((Path(m.path) for m in cached if m.complete), None)


def _answer(listener: socket.socket) -> None:
    with listener:
        line, _ = listener.accept()
    with line:
        line.settimeout(PATIENCE_S)
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(PINGS):
            line.recv(1)
            line.sendall(b".")
        left = LOAD_BYTES
        while left:
            data = line.recv(PIECE)
            if not data:
                return
            left -= len(data)
        line.sendall(b".")


def _room(place: Path) -> Room:
    while not place.exists():
        place = place.parent
    usage = shutil.disk_usage(place)
    return Room(str(place), usage.free, usage.total)
