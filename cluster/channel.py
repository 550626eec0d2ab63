"""The replica's end of its sockets to gateways.

    accepting thread    one for the server
    reading thread      one a connection: handshake, then submit and abort
    engine's thread     calls a connection's sink once a step: one message, sent at once
    writing thread      one a connection: what a slow gateway left unread
    beating thread      one for the server: a sign of life and the load, every half second

A connection that ends, falls silent, sends what is no message or does not read loses its
generations and nothing else is touched.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from typing import Protocol

from ..engine.bounds import MAX_N
from ..engine.errors import EngineLost, ShoalError, WorkerSilent, WorkerStalled
from ..engine.holdings import Holdings
from ..engine.request import FinishReason, Request, SamplingParams, Update
from . import wire
from .greeting import GATEWAYS, greet, limit_silence, receive
from .link import Load, ModelCard
from .news import News

MAX_BACKLOG = 64 << 20
MAX_GREETINGS = 32
QUIET_S = 0.2  # without a live sequence, before a drain counts as done
_CHUNK = 1 << 20

log = logging.getLogger(__name__)


class Engine(Protocol):
    """What a channel asks of an engine; any thread may call it."""

    def submit(self, request: Request, sink: Callable[[list[Update]], None]) -> None:
        """Take a request; `sink` gets its updates, once a step. Raises ShoalError."""
        ...

    def abort(
        self,
        request_id: str,
        sibling: int | None = None,
        reason: FinishReason = FinishReason.ABORT,
    ) -> None:
        """Drop a request or one sibling; it counts as ended for `reason`."""
        ...

    def load(self) -> Load:
        """How busy it is. Raises EngineLost once it has died."""
        ...

    @property
    def holdings(self) -> Holdings:
        """Which prefixes it has cached."""
        ...


class Channel:
    """Listens on `host` for gateways that hold `secret` and feeds their requests to `engine`."""

    def __init__(
        self,
        engine: Engine,
        *,
        replica: str,
        card: ModelCard,
        secret: bytes,
        host: str,
        index: int = 0,
    ) -> None:
        self.engine = engine
        self.replica = replica
        self.index = index
        self.card = card
        self.secret = secret
        self.leaving = False
        self.news = News(engine.holdings)
        self._peers: set[Peer] = set()
        self._greetings = threading.BoundedSemaphore(MAX_GREETINGS)
        self._closed = threading.Event()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, 0), family=family, backlog=128)
        self.address: tuple[str, int] = self._listener.getsockname()[:2]

    def start(self) -> None:
        """Begin to accept gateways."""
        for target in (self._accept, self._beat):
            threading.Thread(target=target, name=f"channel-{target.__name__}", daemon=True).start()

    @property
    def num_live(self) -> int:
        """Sequences that gateways wait for."""
        return sum(len(peer.live) for peer in self._peers)

    def drain(self, timeout_s: float) -> bool:
        """Take nothing new and wait for what runs; whether it all ended in time.

        What was begun elsewhere is still taken: it comes here only where it has no other place.
        """
        self.leaving = True
        self._tell(wire.Leaving())
        until = time.monotonic() + timeout_s
        quiet_since = time.monotonic()
        while time.monotonic() < min(until, quiet_since + QUIET_S):
            if self.num_live:
                quiet_since = time.monotonic()
            self._closed.wait(0.02)
        return not self.num_live

    def give_up(self, reason: str) -> None:
        """Tell everybody that the engine stands still: what they wait for will not come."""
        self.leaving = True
        self._tell(wire.Lost(reason, stalled=True, stuck=True))

    def close(self) -> None:
        """Hang up on everybody; harmless when repeated."""
        self._closed.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for peer in tuple(self._peers):
            peer.hang_up()

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                connection, address = self._listener.accept()
            except OSError:
                if not self._closed.wait(0.05):
                    continue
                return
            if not self._greetings.acquire(blocking=False):
                connection.close()
                continue
            threading.Thread(
                target=self._attend, args=(connection, address), name="channel-read", daemon=True
            ).start()

    def _attend(self, connection: socket.socket, address: tuple[str, int]) -> None:
        """One gateway, from its greeting to its end."""
        peer = None
        try:
            try:
                gateway = self._greet(connection)
            finally:
                self._greetings.release()
            if gateway is not None:
                peer = Peer(connection, gateway, self)
                self._peers.add(peer)
                self.news.join(peer)
                peer.read()
        except (wire.BadFrame, OSError) as error:
            if peer is None or not peer.gone:
                why = str(error) or type(error).__name__
                log.warning("hung up on %s:%s: %s", *address[:2], why)
                if peer is not None:  # else it would take the engine for dead
                    lost = wire.Lost(f"it hung up on the gateway: {why}", stalled=True)
                    peer.send(wire.frame(lost))
        finally:
            if peer is not None:
                self._peers.discard(peer)
                self.news.leave(peer)
                peer.hang_up()
                peer.abort_all()
            connection.close()

    def _greet(self, connection: socket.socket) -> str | None:
        """The name of a gateway that proved itself; None for one that came and went."""
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        gateway = greet(connection, self.secret, GATEWAYS)
        if gateway is not None:
            welcome = wire.Welcome(
                replica=self.replica,
                index=self.index,
                node=self.address[0],
                pid=os.getpid(),
                card=self.card,
                load=self.engine.load(),
            )
            connection.sendall(wire.frame(welcome))
            if self.leaving:
                connection.sendall(wire.frame(wire.Leaving()))
            limit_silence(connection, wire.GATEWAY_SILENCE_S)
        return gateway

    def _beat(self) -> None:
        while not self._closed.wait(wire.BEAT_S):
            with contextlib.suppress(ShoalError):
                self.news.tell()
                # Counted before the load is taken: what comes in between must not go uncounted.
                counts = [(peer, len(peer.live), peer.num_taken) for peer in tuple(self._peers)]
                load = self.engine.load()
                streams: dict[str, int] = {}
                for peer, yours, _ in counts:
                    streams[peer.gateway] = streams.get(peer.gateway, 0) + yours
                for peer, yours, taken in counts:
                    peer.send(wire.frame(wire.Beat(load, yours, taken, streams)))

    def _tell(self, message: wire.Leaving | wire.Lost) -> None:
        for peer in tuple(self._peers):
            peer.send(wire.frame(message))


class Peer:
    """One gateway that has proved itself. `live`: the sequences that it waits for."""

    def __init__(self, connection: socket.socket, gateway: str, channel: Channel) -> None:
        self.gateway = gateway
        self.live: dict[tuple[str, int], int] = {}
        self.num_taken = 0
        self.gone = False
        self.sink = self._sink  # one object: engines tell sinks apart by identity
        self._connection = connection
        self._channel = channel
        self._backlog = bytearray()
        self._lock = threading.Condition()
        threading.Thread(target=self._write_backlog, name="channel-write", daemon=True).start()

    def read(self) -> None:
        """Obey the gateway until it ends. Raises BadFrame, OSError."""
        while (body := receive(self._connection, wire.MAX_FRAME)) is not None:
            message = wire.from_gateway(body)
            if isinstance(message, wire.Submit):
                self._submit(message)
                self.num_taken += 1
            elif isinstance(message, wire.Abort):
                self._abort(message)
            elif not isinstance(message, wire.Beat):
                raise wire.BadFrame(f"a second {type(message).__name__}")

    @property
    def unread(self) -> int:
        """See Reader."""
        return len(self._backlog)

    def send(self, frame: bytes) -> None:
        """Send at once what the socket takes and leave the rest to the writing thread."""
        with self._lock:
            if self.gone:
                return
            sent = 0 if self._backlog else self._send_some(frame)
            if sent < len(frame):
                self._backlog += frame[sent:]
                if len(self._backlog) > MAX_BACKLOG:
                    log.warning("hung up on gateway %s: it does not read", self.gateway)
                    self.hang_up()
                self._lock.notify()

    def hang_up(self) -> None:
        """End the connection; the reading thread then cleans up."""
        with self._lock:
            self.gone = True
            self._lock.notify()
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def abort_all(self) -> None:
        """Free what the gateway's generations hold."""
        for request_id in {request_id for request_id, _ in tuple(self.live)}:
            self._channel.engine.abort(request_id)
        self.live.clear()

    def _submit(self, message: wire.Submit) -> None:
        sent = message.request
        try:
            request = wire.request_of(message)
        except ShoalError as error:
            plain = SamplingParams(n=min(max(sent.params.n, 1), MAX_N))
            refused = Request(
                id=sent.id, prompt=(), params=plain, sibling=sent.sibling, epoch=sent.epoch
            )
            self.send(wire.frame(wire.refused_of(refused, error)))
            return
        keys = [(request.id, request.sibling + i) for i in range(request.params.n)]
        self.live.update(dict.fromkeys(keys, request.epoch))
        try:
            if self._channel.leaving and not request.epoch:
                raise EngineLost(f"replica {self._channel.replica} is being stopped")
            self._channel.engine.submit(request, self.sink)
        except ShoalError as error:
            for key in keys:
                self.live.pop(key, None)
            self.send(wire.frame(wire.refused_of(request, error)))

    def _abort(self, message: wire.Abort) -> None:
        self._channel.engine.abort(message.id, message.sibling, message.reason)
        for key in tuple(self.live):
            if key[0] == message.id and message.sibling in (None, key[1]):
                self.live.pop(key, None)

    def _sink(self, updates: list[Update]) -> None:
        ends = [update for update in updates if update.finish is not None]
        if any(u.finish is FinishReason.ERROR for u in ends) and (lost := self._engine_lost()):
            stalled = isinstance(lost, WorkerStalled)
            stuck = stalled and not isinstance(lost, WorkerSilent)
            self.send(wire.frame(wire.Lost(lost.message, stalled, stuck)))
            return
        for update in ends:
            self.live.pop((update.id, update.sibling), None)
        if ends or any(update.num_cached is not None for update in updates):
            self._channel.news.tell()
        self._send_step(updates)

    def _engine_lost(self) -> EngineLost | None:
        try:
            self._channel.engine.load()
        except EngineLost as error:
            return error
        return None

    def _send_step(self, updates: list[Update]) -> None:
        """One message, or several where they do not fit one frame."""
        try:
            self.send(wire.frame(wire.Step(updates)))
        except wire.BadFrame as error:
            if len(updates) > 1:
                half = len(updates) // 2
                self._send_step(updates[:half])
                self._send_step(updates[half:])
                return
            (lost,) = updates
            self._channel.engine.abort(lost.id, lost.sibling)
            self.live.pop((lost.id, lost.sibling), None)
            end = Update(
                lost.id,
                lost.sibling,
                finish=FinishReason.ERROR,
                error=f"{error}; ask for fewer log probabilities",
                epoch=lost.epoch,
            )
            self.send(wire.frame(wire.Step([end])))

    def _send_some(self, frame: bytes) -> int:
        try:
            return self._connection.send(frame, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0
        except OSError:
            self.hang_up()
            return len(frame)

    def _write_backlog(self) -> None:
        poll = select.poll()
        poll.register(self._connection, select.POLLOUT)
        while True:
            with self._lock:
                self._lock.wait_for(lambda: self._backlog or self.gone)
                if self.gone:
                    return
            poll.poll(1000)
            with self._lock:
                del self._backlog[: self._send_some(bytes(self._backlog[:_CHUNK]))]
