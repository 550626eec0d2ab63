"""One answer: its pieces from the server to the screen, and what it took."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

from ..client import Client


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """An answer. Tokens are the server's count, or pieces where it gave none; `first_s` is None
    where nothing came."""

    text: str
    prompt_tokens: int
    output_tokens: int
    first_s: float | None
    seconds: float
    interrupted: bool

    @property
    def tokens_per_s(self) -> float:
        """Speed after the first token."""
        writing = self.seconds - (self.first_s or 0.0)
        return max(self.output_tokens - 1, 0) / max(writing, 1e-6)


def take_turn(client: Client, body: dict[str, Any], write: Callable[[str], None]) -> Turn:
    """Send `body` as a chat, give the pieces of the answer to `write`, and tell how it went.

    Ctrl-C ends the request at the server and leaves what was said so far. Raises ClientError.
    """
    said: list[str] = []
    usage: dict[str, Any] = {}
    begin = time.monotonic()
    first: float | None = None
    body = {**body, "stream_options": {"include_usage": True}}
    with _ctrl_c() as ctrl_c, closing(_deltas(client, body, usage)) as pieces:
        while (piece := ctrl_c.next_of(pieces)) is not None:
            if piece and first is None:
                first = time.monotonic() - begin
            said.append(piece)
            write(piece)
    return Turn(
        text="".join(said),
        prompt_tokens=int(usage.get("prompt_tokens") or 0),
        output_tokens=int(usage.get("completion_tokens") or sum(map(bool, said))),
        first_s=first,
        seconds=time.monotonic() - begin,
        interrupted=ctrl_c.came,
    )


def _deltas(
    client: Client, body: dict[str, Any], usage: dict[str, Any]
) -> Generator[str, None, None]:
    """The pieces of an answer; `usage` is filled when the server tells it."""
    with closing(client.stream("/v1/chat/completions", body)) as chunks:
        for chunk in chunks:
            usage.update(chunk.get("usage") or {})
            for choice in chunk.get("choices") or ():
                yield (choice.get("delta") or {}).get("content") or ""


class _CtrlC:
    """Lets Ctrl-C break a wait for the server, and nothing else, such as drawing."""

    def __init__(self) -> None:
        self.came = False
        self._waiting = False

    def handle(self, number: int, frame: object) -> None:
        """See signal.signal."""
        self.came = True
        if self._waiting:
            raise KeyboardInterrupt

    def next_of(self, pieces: Iterator[str]) -> str | None:
        """The next piece; None at the end, and once Ctrl-C came."""
        try:
            self._waiting = True
            return None if self.came else next(pieces, None)
        except KeyboardInterrupt:
            return None
        finally:
            self._waiting = False


@contextmanager
def _ctrl_c() -> Iterator[_CtrlC]:
    ctrl_c = _CtrlC()
    before = signal.signal(signal.SIGINT, ctrl_c.handle)
    try:
        yield ctrl_c
    finally:
        signal.signal(signal.SIGINT, before)
