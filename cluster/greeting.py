"""How two processes of one application make sure of each other before they speak, over a socket.

Both ends of the blocking kind: whoever listens (a replica for gateways, an executor for its ranks)
and whoever comes. The asynchronous end of a gateway is in `remote.py`.
"""

from __future__ import annotations

import contextlib
import math
import socket
import struct
import time
from typing import NamedTuple

from .. import __version__
from . import wire

_CHUNK = 1 << 20


class Roles(NamedTuple):
    """What the two sides prove themselves as."""

    comer: str
    host: str


GATEWAYS = Roles(comer="gateway", host="replica")


def greet(connection: socket.socket, secret: bytes, roles: Roles) -> str | None:
    """The name of a comer that proved itself; None for one that came and went.

    Raises BadFrame, OSError.
    """
    limit_silence(connection, wire.GREETING_S)
    until = time.monotonic() + wire.GREETING_S
    hello = _next_from_comer(connection, until)
    if hello is None:
        return None
    if not isinstance(hello, wire.Hello):
        raise _refuse(connection, "a link begins with Hello")
    if reason := wire.other_version(hello.protocol, hello.version):
        raise _refuse(connection, reason)
    if len(hello.nonce) != wire.NONCE:
        raise _refuse(connection, f"a nonce has {wire.NONCE} bytes")
    nonce = wire.new_nonce()
    proof = wire.prove(secret, roles.host, hello.nonce, nonce)
    connection.sendall(wire.frame(wire.Challenge(wire.PROTOCOL, __version__, nonce, proof)))
    answer = _next_from_comer(connection, until)
    if answer is None:
        raise wire.BadFrame("it left at the challenge; another secret?")
    if not isinstance(answer, wire.Proof) or not wire.proves(
        answer.proof, secret, roles.comer, hello.nonce, nonce
    ):
        raise _refuse(connection, "a stranger: it does not hold this application's secret")
    return hello.gateway


def introduce(connection: socket.socket, secret: bytes, roles: Roles, name: str) -> None:
    """Come to a host under `name`. Raises BadFrame, OSError."""
    limit_silence(connection, wire.GREETING_S)
    nonce = wire.new_nonce()
    connection.sendall(wire.frame(wire.Hello(wire.PROTOCOL, __version__, name, nonce)))
    body = receive(connection, wire.MAX_GREETING)
    if body is None:
        raise wire.BadFrame("it hung up during the greeting")
    proof = answer_to(wire.from_replica(body), secret, roles, nonce)
    connection.sendall(wire.frame(proof))
    limit_silence(connection, 0)


def answer_to(challenge: wire.ToGateway, secret: bytes, roles: Roles, nonce: bytes) -> wire.Proof:
    """What a comer answers its host, which has proved itself over `nonce`. Raises BadFrame."""
    if isinstance(challenge, wire.Refusal):
        raise wire.BadFrame(challenge.reason)
    if not isinstance(challenge, wire.Challenge):
        raise wire.BadFrame(f"a {type(challenge).__name__} instead of a Challenge")
    if reason := wire.other_version(challenge.protocol, challenge.version):
        raise wire.BadFrame(reason)
    if not wire.proves(challenge.proof, secret, roles.host, nonce, challenge.nonce):
        raise wire.BadFrame("a stranger: it does not hold this application's secret")
    return wire.Proof(wire.prove(secret, roles.comer, nonce, challenge.nonce))


def limit_silence(connection: socket.socket, seconds: float) -> None:
    """Let the kernel bound `recv` alone; 0 takes the bound off.

    A socket timeout of Python's would bound `send` too.
    """
    whole, rest = divmod(seconds, 1)
    limit = struct.pack("ll", int(whole), int(rest * 1e6))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)


def receive(
    connection: socket.socket, bound: float, until: float = math.inf, head: int = wire.HEAD
) -> bytes | None:
    """The next frame's message; None at the end. Raises BadFrame, OSError."""
    length = _receive_exactly(connection, head, until)
    if length is None:
        return None
    return _receive_exactly(connection, wire.frame_size(length, bound), until)


def _next_from_comer(connection: socket.socket, until: float) -> wire.ToReplica | None:
    try:
        body = receive(connection, wire.MAX_GREETING, until)
        return None if body is None else wire.from_gateway(body)
    except wire.BadFrame as error:
        raise _refuse(connection, error.message) from None


def _refuse(connection: socket.socket, reason: str) -> wire.BadFrame:
    with contextlib.suppress(OSError):
        connection.sendall(wire.frame(wire.Refusal(reason)))
        connection.shutdown(socket.SHUT_WR)
        limit_silence(connection, 0.2)
        connection.recv(_CHUNK)  # what lies unread when a socket closes wipes out what was sent
    return wire.BadFrame(reason)


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
