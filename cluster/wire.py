"""What crosses the socket between a gateway and a replica: typed msgpack in bounded frames.

    gateway                         replica
    Hello    ->
             <-  Challenge | Refusal          versions agree, the replica proves the secret
    Proof    ->
             <-  Welcome | Refusal            the gateway proves it
    Submit, Abort, Beat ->
             <-  Step, Refused, Beat, Cached, Leaving, Lost

A frame is its length in four bytes, big end first, and one msgpack message. The secret itself is
never sent: each side returns the HMAC-SHA256 of both nonces under it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import os
import typing
from typing import Any

import msgspec

from .. import __version__
from ..engine import errors, request
from ..engine.errors import EngineLost, InvalidRequest, ShoalError
from ..engine.keys import KEY_BYTES
from ..engine.request import FinishReason, Request, SamplingParams, Update, fold_seed
from .link import Load, ModelCard

PROTOCOL = 1
HEAD = 4
MAX_FRAME = 64 << 20
MAX_GREETING = 4096
BEAT_S = 0.5
SILENCE_S = 1.5  # of a replica, whose beats have a thread of their own
GATEWAY_SILENCE_S = 5.0  # of a gateway, whose event loop may be busy with a long prompt
GREETING_S = 5.0

_STAYS = ("logits_processors",)
NONCE = 32


class BadFrame(ShoalError):
    """Bytes that are no message of this protocol."""


class Refusal(msgspec.Struct, tag="refusal", frozen=True, array_like=True):
    """Why the other side hangs up."""

    reason: str


class Hello(msgspec.Struct, tag="hello", frozen=True, array_like=True):
    """A gateway's first word."""

    protocol: int
    version: str
    gateway: str
    nonce: bytes


class Challenge(msgspec.Struct, tag="challenge", frozen=True, array_like=True):
    """The replica's answer: its proof over the gateway's nonce, and a nonce of its own."""

    protocol: int
    version: str
    nonce: bytes
    proof: bytes


class Proof(msgspec.Struct, tag="proof", frozen=True, array_like=True):
    """The gateway's proof."""

    proof: bytes


class Welcome(msgspec.Struct, tag="welcome", frozen=True, array_like=True):
    """The link is open, to the process `pid` on `node`."""

    replica: str
    index: int
    node: str
    pid: int
    card: ModelCard
    load: Load


def _struct(name: str, of: type, **types: Any) -> Any:
    """A struct with the fields of dataclass `of`, less those that cannot travel."""
    hints = typing.get_type_hints(of, vars(request)) | types
    fields: list[Any] = []
    for field in dataclasses.fields(of):
        if field.name in _STAYS:
            continue
        if field.default is not dataclasses.MISSING:
            fields.append((field.name, hints[field.name], field.default))
        elif field.default_factory is not dataclasses.MISSING:
            fields.append((field.name, hints[field.name], msgspec.field(default=None)))
        else:
            fields.append((field.name, hints[field.name]))
    return msgspec.defstruct(name, fields, omit_defaults=True, frozen=True, kw_only=True)


_Params: Any = _struct("_Params", SamplingParams)
_Request: Any = _struct("_Request", Request, params=_Params)


class Submit(msgspec.Struct, tag="submit", frozen=True, array_like=True):
    """A request to be generated; see `submit_of` and `request_of`."""

    request: _Request


class Abort(msgspec.Struct, tag="abort", frozen=True, array_like=True):
    """Nobody waits for a request, or for one sibling, any more; the engine counts `reason`."""

    id: str
    sibling: int | None
    reason: FinishReason = FinishReason.ABORT


class Beat(msgspec.Struct, tag="beat", frozen=True, array_like=True):
    """A sign of life; a replica's carries its load, how many sequences of it this gateway sent, how
    many requests from it are in the load or were, and the sequences of each gateway by its name.
    """

    load: Load | None = None
    yours: int = 0
    taken: int = 0
    streams: dict[str, int] = {}


class Cached(msgspec.Struct, tag="cached", frozen=True, array_like=True):
    """Which prefixes came into the replica's cache and which went: their keys, end to end.

    `anew`: forget what was told before. See `keys_of`.
    """

    gained: bytes
    lost: bytes
    anew: bool = False


class Step(msgspec.Struct, tag="step", frozen=True, array_like=True):
    """What one engine step brought all streams of this gateway."""

    updates: list[Update]


class Refused(msgspec.Struct, tag="refused", frozen=True, array_like=True):
    """A request that the engine did not take: the error by its name and arguments."""

    id: str
    sibling: int
    n: int
    epoch: int
    error: str
    arguments: list[str | float | None]


class Leaving(msgspec.Struct, tag="leaving", frozen=True, array_like=True):
    """The replica finishes what it has and takes no more."""


class Lost(msgspec.Struct, tag="lost", frozen=True, array_like=True):
    """The engine died, and every request with it; or it lives (`stalled`), but stands still or
    parts with this gateway. `stuck`: it stands still over its work, perhaps because of that.
    """

    reason: str
    stalled: bool = False
    stuck: bool = False


ToReplica = Hello | Proof | Submit | Abort | Beat
ToGateway = Challenge | Refusal | Welcome | Step | Refused | Beat | Cached | Leaving | Lost

Body = bytes | bytearray | memoryview

_encoder = msgspec.msgpack.Encoder()
_from_gateway = msgspec.msgpack.Decoder(ToReplica)
_from_replica = msgspec.msgpack.Decoder(ToGateway)


def frame(message: msgspec.Struct) -> bytes:
    """A message ready to be sent. Raises BadFrame above MAX_FRAME."""
    body = framed(message, HEAD)
    size = len(body) - HEAD
    if size > MAX_FRAME:
        raise BadFrame(f"a message of {size} bytes; at most {MAX_FRAME} may be sent")
    return bytes(body)


def framed(message: msgspec.Struct, head: int) -> bytearray:
    """A message of any size behind its length in `head` bytes."""
    body = bytearray(head)
    _encoder.encode_into(message, body, head)
    body[:head] = (len(body) - head).to_bytes(head, "big")
    return body


def frame_size(head: bytes, bound: float = MAX_FRAME) -> int:
    """The length that a frame's first bytes announce. Raises BadFrame above `bound`."""
    size = int.from_bytes(head, "big")
    if size > bound:
        raise BadFrame(f"a frame of {size} bytes is announced; at most {bound} are taken")
    return size


def take_frame(unread: bytearray, bound: float = MAX_FRAME, head: int = HEAD) -> bytes | None:
    """The message of the first frame of `unread`, which it is taken from, once all of it is there.

    `head`: in how many bytes its length is told. Raises BadFrame above `bound`.
    """
    if len(unread) < head:
        return None
    end = head + frame_size(bytes(unread[:head]), bound)
    if len(unread) < end:
        return None
    body = bytes(memoryview(unread)[head:end])
    del unread[:end]
    return body


def decoded(decoder: msgspec.msgpack.Decoder[Any], body: Body, sender: str) -> Any:
    """The message that `sender` sent. Raises BadFrame."""
    try:
        return decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadFrame(f"no message of {sender}: {error}") from None


def from_gateway(body: Body) -> ToReplica:
    """The message that a gateway sent. Raises BadFrame."""
    message: ToReplica = decoded(_from_gateway, body, "a gateway")
    return message


def from_replica(body: Body) -> ToGateway:
    """The message that a replica sent. Raises BadFrame."""
    message: ToGateway = decoded(_from_replica, body, "a replica")
    return message


def submit_of(request: Request) -> Submit:
    """The message that carries `request`.

    Raises InvalidRequest for what cannot leave the process.
    """
    for name in _STAYS:
        if getattr(request.params, name) is not None:
            raise InvalidRequest(
                f"{name} are functions and cannot be sent to a server; use the offline LLM", name
            )
    values = _values(_Params, request.params)
    if request.params.seed is not None:
        values["seed"] = fold_seed(request.params.seed)
    params = _Params(**values)
    return Submit(_Request(**(_values(_Request, request) | {"params": params})))


def request_of(message: Submit) -> Request:
    """The request that a message carries. Raises InvalidRequest."""
    sent = message.request
    params = SamplingParams(**_values(_Params, sent.params))
    return Request(
        **(
            _values(_Request, sent)
            | {"params": params, "prompt": tuple(sent.prompt), "emitted": tuple(sent.emitted)}
        )
    )


def _values(struct: Any, of: object) -> dict[str, Any]:
    return {name: getattr(of, name) for name in struct.__struct_fields__}


def keys_of(joined: bytes) -> list[bytes]:
    """The keys in a `Cached`. Raises BadFrame."""
    if len(joined) % KEY_BYTES:
        raise BadFrame(f"{len(joined)} bytes are no keys of {KEY_BYTES} bytes each")
    return [joined[start : start + KEY_BYTES] for start in range(0, len(joined), KEY_BYTES)]


def refused_of(request: Request, error: ShoalError) -> Refused:
    """The message that carries an engine's refusal."""
    arguments = [a if isinstance(a, str | float | None) else str(a) for a in error.args]
    name = type(error).__name__
    return Refused(request.id, request.sibling, request.params.n, request.epoch, name, arguments)


def error_of(message: Refused) -> ShoalError:
    """The refusal as it was raised; EngineLost where its kind is not known here."""
    kind = getattr(errors, message.error, None)
    if isinstance(kind, type) and issubclass(kind, ShoalError):
        return kind(*message.arguments)
    return EngineLost(f"{message.error}: {message.arguments}")


def new_nonce() -> bytes:
    """A number used once."""
    return os.urandom(NONCE)


def prove(secret: bytes, who: str, ours: bytes, theirs: bytes) -> bytes:
    """What shows that `who` ("gateway" or "replica") holds the secret.

    `ours` is the gateway's nonce on both sides, `theirs` the replica's; both have NONCE bytes.
    """
    return hmac.new(secret, b"\0".join((who.encode(), ours, theirs)), hashlib.sha256).digest()


def proves(proof: bytes, secret: bytes, who: str, ours: bytes, theirs: bytes) -> bool:
    """Whether `proof` is the one of `prove`, compared in constant time."""
    return hmac.compare_digest(proof, prove(secret, who, ours, theirs))


def other_version(protocol: int, version: str) -> str | None:
    """Why the other side's version cannot be spoken to; None where it can."""
    if (protocol, version) == (PROTOCOL, __version__):
        return None
    return (
        f"the other side is shoal {version} (protocol {protocol}), this is shoal {__version__} "
        f"(protocol {PROTOCOL}); install the same version on every node"
    )
