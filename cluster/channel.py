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
import math
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Protocol

from .. import __version__
from ..engine.errors import EngineLost, ShoalError
from ..engine.request import MAX_N, FinishReason, Request, SamplingParams, Update
from . import wire
from .link import Load, ModelCard

MAX_BACKLOG = 64 << 20
MAX_GREETINGS = 32
_CHUNK = 1 << 20

log = logging.getLogger(__name__)


class Engine(Protocol):
    """What a channel asks of an engine; any thread may call it."""

    def submit(self, request: Request, sink: Callable[[list[Update]], None]) -> None:
        """Take a request; `sink` gets its updates, once a step. Raises ShoalError."""
        ...

    def abort(self, request_id: str, sibling: int | None = None) -> None:
        """Drop a request or one sibling."""
        ...

    def load(self) -> Load:
        """How busy it is. Raises EngineLost once it has died."""
        ...


class Channel:
    """Listens on `host` for gateways that hold `secret` and feeds their requests to `engine`."""

    def __init__(
        self, engine: Engine, *, replica: str, card: ModelCard, secret: bytes, host: str
    ) -> None:
        self.engine = engine
        self.replica = replica
        self.card = card
        self.secret = secret
        self.leaving = False
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
        """Take nothing more and wait for what runs; whether it all ended in time."""
        self.leaving = True
        self._tell(wire.Leaving())
        until = time.monotonic() + timeout_s
        while self.num_live and time.monotonic() < until:
            self._closed.wait(0.02)
        return not self.num_live

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
                gateway = _greet(connection, self)
            finally:
                self._greetings.release()
            if gateway is not None:
                peer = Peer(connection, gateway, self)
                self._peers.add(peer)
                peer.read()
        except (wire.BadFrame, OSError) as error:
            if peer is None or not peer.gone:
                log.warning("hung up on %s:%s: %s", *address[:2], error or type(error).__name__)
        finally:
            if peer is not None:
                self._peers.discard(peer)
                peer.hang_up()
                peer.abort_all()
            connection.close()

    def _beat(self) -> None:
        while not self._closed.wait(wire.BEAT_S):
            with contextlib.suppress(ShoalError):
                load = self.engine.load()
                for peer in tuple(self._peers):
                    peer.send(wire.frame(wire.Beat(load, len(peer.live))))

    def _tell(self, message: wire.Leaving) -> None:
        for peer in tuple(self._peers):
            peer.send(wire.frame(message))


class Peer:
    """One gateway that has proved itself. `live`: the sequences that it waits for."""

    def __init__(self, connection: socket.socket, gateway: str, channel: Channel) -> None:
        self.gateway = gateway
        self.live: dict[tuple[str, int], int] = {}
        self.gone = False
        self.sink = self._sink  # one object: engines tell sinks apart by identity
        self._connection = connection
        self._channel = channel
        self._backlog = bytearray()
        self._lock = threading.Condition()
        threading.Thread(target=self._write_backlog, name="channel-write", daemon=True).start()

    def read(self) -> None:
        """Obey the gateway until it ends. Raises BadFrame, OSError."""
        while (body := _receive(self._connection, wire.MAX_FRAME)) is not None:
            message = wire.from_gateway(body)
            if isinstance(message, wire.Submit):
                self._submit(message)
            elif isinstance(message, wire.Abort):
                self._abort(message)
            elif not isinstance(message, wire.Beat):
                raise wire.BadFrame(f"a second {type(message).__name__}")

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
            refused = Request(id=sent.id, prompt=(), params=plain, sibling=sent.sibling)
            self.send(wire.frame(wire.refused_of(refused, error)))
            return
        keys = [(request.id, request.sibling + i) for i in range(request.params.n)]
        self.live.update(dict.fromkeys(keys, request.epoch))
        try:
            if self._channel.leaving:
                raise EngineLost(f"replica {self._channel.replica} is being stopped")
            self._channel.engine.submit(request, self.sink)
        except ShoalError as error:
            for key in keys:
                self.live.pop(key, None)
            self.send(wire.frame(wire.refused_of(request, error)))

    def _abort(self, message: wire.Abort) -> None:
        self._channel.engine.abort(message.id, message.sibling)
        for key in tuple(self.live):
            if key[0] == message.id and message.sibling in (None, key[1]):
                self.live.pop(key, None)

    def _sink(self, updates: list[Update]) -> None:
        if any(u.finish is FinishReason.ERROR for u in updates) and (lost := self._engine_lost()):
            self.send(wire.frame(wire.Lost(lost.message)))
            return
        for update in updates:
            if update.finish is not None:
                self.live.pop((update.id, update.sibling), None)
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


def _greet(connection: socket.socket, channel: Channel) -> str | None:
    """The name of a gateway that proved itself; None for one that came and went.

    Raises BadFrame, OSError.
    """
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    _limit_silence(connection, wire.GREETING_S)
    until = time.monotonic() + wire.GREETING_S
    hello = _next_greeting(connection, until)
    if hello is None:
        return None
    if not isinstance(hello, wire.Hello):
        raise _refuse(connection, "a link begins with Hello")
    if reason := wire.other_version(hello.protocol, hello.version):
        raise _refuse(connection, reason)
    if len(hello.nonce) != wire.NONCE:
        raise _refuse(connection, f"a nonce has {wire.NONCE} bytes")
    nonce = wire.new_nonce()
    proof = wire.prove(channel.secret, "replica", hello.nonce, nonce)
    connection.sendall(wire.frame(wire.Challenge(wire.PROTOCOL, __version__, nonce, proof)))
    answer = _next_greeting(connection, until)
    if answer is None:
        raise wire.BadFrame("it left at the challenge; another secret?")
    if not isinstance(answer, wire.Proof) or not wire.proves(
        answer.proof, channel.secret, "gateway", hello.nonce, nonce
    ):
        raise _refuse(connection, "a stranger: it does not hold this application's secret")
    load = channel.engine.load()
    connection.sendall(wire.frame(wire.Welcome(channel.replica, channel.card, load)))
    if channel.leaving:
        connection.sendall(wire.frame(wire.Leaving()))
    _limit_silence(connection, wire.GATEWAY_SILENCE_S)
    return hello.gateway


def _next_greeting(connection: socket.socket, until: float) -> wire.ToReplica | None:
    try:
        body = _receive(connection, wire.MAX_GREETING, until)
        return None if body is None else wire.from_gateway(body)
    except wire.BadFrame as error:
        raise _refuse(connection, error.message) from None


def _refuse(connection: socket.socket, reason: str) -> wire.BadFrame:
    with contextlib.suppress(OSError):
        connection.sendall(wire.frame(wire.Refusal(reason)))
        connection.shutdown(socket.SHUT_WR)
        _limit_silence(connection, 0.2)
        connection.recv(_CHUNK)  # what lies unread when a socket closes wipes out what was sent
    return wire.BadFrame(reason)


def _limit_silence(connection: socket.socket, seconds: float) -> None:
    """Let the kernel bound `recv` alone: a socket timeout of Python's would bound `send` too."""
    whole, rest = divmod(seconds, 1)
    limit = struct.pack("ll", int(whole), int(rest * 1e6))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)


def _receive(connection: socket.socket, bound: int, until: float = math.inf) -> bytes | None:
    """The next frame's message; None at the end. Raises BadFrame, OSError."""
    head = _receive_exactly(connection, 4, until)
    if head is None:
        return None
    return _receive_exactly(connection, wire.frame_size(head, bound), until)


def _receive_exactly(connection: socket.socket, size: int, until: float) -> bytes | None:
    """`size` bytes; None where the other side ended first. Raises BadFrame after a silence."""
    data = bytearray()
    while len(data) < size:
        try:
            part = connection.recv(min(size - len(data), _CHUNK))
        except BlockingIOError:
            raise wire.BadFrame("it fell silent") from None
        if not part:
            return None
        if time.monotonic() > until:
            raise wire.BadFrame(f"its greeting took longer than {wire.GREETING_S:g} s")
        data += part
    return bytes(data)
