"""The gateway's end of its socket to a replica: a Link that reaches another process."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from .. import __version__
from ..engine.errors import EngineLost, Overloaded, ShoalError
from ..engine.request import FinishReason, Request, Update
from . import wire
from .backlog import Backlog
from .frames import Frames
from .greeting import GATEWAYS, answer_to
from .link import LinkLost, Load, ModelCard
from .prefixes import PrefixIndex
from .standing import Standing

MAX_UNSENT = 64 << 20

log = logging.getLogger(__name__)

OnUpdate = Callable[[Update | ShoalError], None]


@dataclass(slots=True, eq=False)
class _Stream:
    """Who waits for a request's updates, and which start of it they must come from.

    `number` and `tokens`: what the backlog knows it by, until it has begun.
    """

    on_update: OnUpdate
    epoch: int
    number: int = 0
    tokens: int = 0


class RemoteLink:
    """A Link over an open connection; made by `connect`, used on its event loop alone.

    `leaving`: the replica takes nothing new. `lost`: why the connection ended, once it has; every
    live request, `num_lost` sequences in all, then has got LinkLost. `stalled`: it
    ended because the replica stands still.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        frames: Frames,
        welcome: wire.Welcome,
        on_lost: Callable[[RemoteLink], None],
        prefixes: PrefixIndex,
    ) -> None:
        self.replica = welcome.replica
        self.index = welcome.index
        self.node, self.pid = welcome.node, welcome.pid
        self.card: ModelCard = welcome.card
        self.load: Load = welcome.load
        self.streams: dict[str, int] = {}
        self.leaving = False
        self.lost: str | None = None
        self.stalled = False
        self.num_lost = 0
        self._transport = transport
        self._frames = frames
        self._on_lost = on_lost
        self._prefixes = prefixes
        self._backlog = Backlog(self.load)
        self._streams: dict[tuple[str, int], _Stream] = {}
        self._others = self.load.running + self.load.waiting
        self._loop = asyncio.get_running_loop()
        self._heard = self._loop.time()
        self._ticking = self._loop.call_later(wire.BEAT_S, self._tick, self._loop.time())
        self._loop.call_soon(frames.hand_to, self._read, self._ended)

    @property
    def state(self) -> str:
        """See Link; dead once the connection has ended."""
        if self.lost is None:
            return "draining" if self.leaving else "ready"
        return "stalled" if self.stalled else "dead"

    @property
    def num_live(self) -> int:
        """Sequences of this gateway that have not ended."""
        return len(self._streams)

    def standing(self, cached: int = 0, last_used: int = 0) -> Standing:
        """See Candidate; of its sequences other gateways' are as last told, this one's as they are
        now.
        """
        return Standing(
            self.replica,
            cached,
            self._backlog.tokens,
            self._others + len(self._streams),
            self._backlog.room,
            last_used,
        )

    @property
    def has_room(self) -> bool:
        """See Link."""
        return self._backlog.room != 0

    def cached(self, request: Request) -> int:
        """See Link."""
        return self._prefixes.held_by(self.replica, request, self.card)

    def submit(self, request: Request, on_update: OnUpdate) -> None:
        """See Link."""
        refusal = self._send_request(request)
        if refusal is not None:
            self._loop.call_soon(on_update, refusal)
            return
        num = request.params.n
        left = len(request.prompt) + len(request.emitted) - self.cached(request) + num - 1
        number = self._backlog.send(left, num)
        stream = _Stream(on_update, request.epoch, number, left)
        for sibling in range(request.sibling, request.sibling + request.params.n):
            self._streams[request.id, sibling] = stream

    def abort(
        self,
        request_id: str,
        sibling: int | None = None,
        reason: FinishReason = FinishReason.ABORT,
    ) -> None:
        """See Link."""
        keys = [k for k in self._streams if k[0] == request_id and sibling in (None, k[1])]
        for key in keys:
            del self._streams[key]
        if keys and self.lost is None:
            self._transport.write(wire.frame(wire.Abort(request_id, sibling, reason)))

    def close(
        self, reason: str = "the gateway hung up", died: bool = False, stuck: bool = False
    ) -> None:
        """End the connection; live requests get LinkLost. Harmless when repeated."""
        if self.lost is not None:
            return
        self.lost = reason
        self.num_lost = len(self._streams)
        self._ticking.cancel()
        self._frames.leave()
        self._transport.close()
        streams = {id(stream): stream for stream in self._streams.values()}
        self._streams.clear()
        self._prefixes.forget(self.replica)
        for stream in streams.values():
            told = f"replica {self.replica} is lost: {reason}"
            _deliver(stream, LinkLost(told, died and not self.leaving, stuck and not self.leaving))
        self._on_lost(self)

    def _send_request(self, request: Request) -> ShoalError | None:
        """Why the request could not be sent."""
        if self.lost is not None:
            return EngineLost(f"replica {self.replica} is lost: {self.lost}")
        if self._transport.get_write_buffer_size() > MAX_UNSENT:
            return Overloaded(f"replica {self.replica} does not read its requests fast enough")
        try:
            self._transport.write(wire.frame(wire.submit_of(request)))
        except ShoalError as error:
            return error
        return None

    def _read(self, body: bytes) -> None:
        self._heard = self._loop.time()
        self._take(wire.from_replica(body))

    def _ended(self, error: Exception | None) -> None:
        if error is None or isinstance(error, ConnectionResetError):
            self.close("its process ended", died=True)
        else:
            self.close(str(error))

    def _take(self, message: wire.ToGateway) -> None:
        if isinstance(message, wire.Step):
            for update in message.updates:
                self._update(update)
        elif isinstance(message, wire.Beat):
            if message.load is not None:
                self.load, self.streams = message.load, message.streams
                self._others = max(0, self.load.running + self.load.waiting - message.yours)
                self._backlog.told(message.load, message.taken)
        elif isinstance(message, wire.Cached):
            if message.anew:
                self._prefixes.forget(self.replica)
            gained, lost = wire.keys_of(message.gained), wire.keys_of(message.lost)
            self._prefixes.update(self.replica, gained, lost)
        elif isinstance(message, wire.Refused):
            self._refused(message)
        elif isinstance(message, wire.Leaving):
            self.leaving = True
        elif isinstance(message, wire.Lost):
            self.stalled = message.stalled
            self.close(message.reason, died=not message.stalled, stuck=message.stuck)
        else:
            raise wire.BadFrame(f"a {type(message).__name__} on an open link")

    def _update(self, update: Update) -> None:
        key = (update.id, update.sibling)
        stream = self._streams.get(key)
        if stream is None:
            if update.finish is None:
                self._transport.write(wire.frame(wire.Abort(*key)))
            return
        if stream.epoch != update.epoch:
            return
        if stream.tokens:
            self._backlog.begun(stream.number, stream.tokens)
            stream.tokens = 0
        if update.finish is not None:
            del self._streams[key]
            self._backlog.ended()
        _deliver(stream, update)

    def _refused(self, message: wire.Refused) -> None:
        refused = []
        for sibling in range(message.sibling, message.sibling + message.n):
            stream = self._streams.get((message.id, sibling))
            if stream is not None and stream.epoch == message.epoch:
                refused.append(self._streams.pop((message.id, sibling)))
        if refused:
            error = wire.error_of(message)
            if isinstance(error, Overloaded):
                self._backlog.refused()
            _deliver(refused[0], error)

    def _tick(self, due: float) -> None:
        """Send a sign of life and look for the replica's."""
        now = self._loop.time()
        if now - due > 2 * wire.BEAT_S:
            self._heard = now  # this loop was held up itself: what came meanwhile is still unread
        if now - self._heard > wire.SILENCE_S:
            self.stalled = True
            self.close(f"no sign of life for {now - self._heard:.1f} s")
            return
        self._transport.write(wire.frame(wire.Beat()))
        self._ticking = self._loop.call_later(wire.BEAT_S, self._tick, now + wire.BEAT_S)


async def connect(
    host: str,
    port: int,
    *,
    secret: bytes,
    gateway: str,
    on_lost: Callable[[RemoteLink], None],
    prefixes: PrefixIndex | None = None,
) -> RemoteLink:
    """Open a link to the replica at `host:port`; `on_lost` is called once, when it ends.

    What the replica has cached is entered into `prefixes`, and stays there until it is lost.
    Raises EngineLost with what the replica said or did.
    """
    try:
        async with asyncio.timeout(wire.GREETING_S):
            loop = asyncio.get_running_loop()
            transport, frames = await loop.create_connection(Frames, host, port)
            try:
                welcome = await _greet(transport, frames, secret, gateway)
            except BaseException:
                transport.close()
                raise
    except TimeoutError:
        reason = f"no greeting within {wire.GREETING_S:g} s"
    except asyncio.IncompleteReadError:
        reason = "it hung up during the greeting"
    except (wire.BadFrame, OSError) as error:
        reason = str(error)
    else:
        return RemoteLink(transport, frames, welcome, on_lost, prefixes or PrefixIndex())
    raise EngineLost(f"replica at {host}:{port} cannot be reached: {reason}")


async def _greet(
    transport: asyncio.Transport, frames: Frames, secret: bytes, gateway: str
) -> wire.Welcome:
    nonce = wire.new_nonce()
    transport.write(wire.frame(wire.Hello(wire.PROTOCOL, __version__, gateway, nonce)))
    challenge = await _next_greeting(frames, wire.MAX_GREETING)
    transport.write(wire.frame(answer_to(challenge, secret, GATEWAYS, nonce)))
    welcome = await _next_greeting(frames, wire.MAX_FRAME)
    if not isinstance(welcome, wire.Welcome):
        raise wire.BadFrame(f"a {type(welcome).__name__} instead of a Welcome")
    return welcome


async def _next_greeting(frames: Frames, bound: int) -> wire.ToGateway:
    message = wire.from_replica(await frames.next(bound))
    if isinstance(message, wire.Refusal):
        raise wire.BadFrame(message.reason)
    return message


def _deliver(stream: _Stream, update: Update | ShoalError) -> None:
    """A caller that fails must not take the other streams with it."""
    try:
        stream.on_update(update)
    except Exception:
        log.exception("a stream's callback failed")
