"""Token ids to text, one at a time: what is certain at once, and nothing that changes later."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Protocol, cast

_UTF8 = cast(type[codecs.BufferedIncrementalDecoder], codecs.getincrementaldecoder("utf-8"))


class Pieces(Protocol):
    """What decoders ask of a tokenizer."""

    added_ids: frozenset[int]

    def token_bytes(self, id: int) -> bytes:
        """The bytes that one token adds to a text."""
        ...

    def whole_text(self, id: int) -> str | None:
        """The same as text; None where they begin or end within a character, or are no text."""
        ...

    def decode_whole(self, ids: Sequence[int]) -> str:
        """`ids` by the tokenizer's own decoder, special tokens included, all at once."""
        ...


class Decoder(Protocol):
    """Turns the ids of one sequence into text, one at a time, never half a character."""

    def step(self, token: int) -> str:
        """The text that is certain now and was not before."""
        ...

    def flush(self) -> str:
        """What was held back, as it stands."""
        ...


class ByteDecoder:
    """For tokenizers whose every piece is known bytes: a table and an incremental UTF-8 decoder."""

    def __init__(
        self, pieces: Pieces, skipped: frozenset[int], strip: bool, prompt: Sequence[int]
    ) -> None:
        self._bytes_of = pieces.token_bytes
        self._text_of = pieces.whole_text
        self._skipped = skipped
        self._utf8 = _UTF8("replace")
        self._strip = strip and not any(map(self._visible, prompt))
        self._utf8.decode(self._tail(prompt))

    def _visible(self, token: int) -> bytes:
        return b"" if token in self._skipped else self._bytes_of(token)

    def _tail(self, prompt: Sequence[int]) -> bytes:
        """The prompt's last bytes, which may hold the beginning of a character."""
        tail = b""
        for token in reversed(prompt):
            tail = self._visible(token) + tail
            if len(tail) >= 4:
                break
        return tail

    def step(self, token: int) -> str:
        """Bytes wait until they are whole characters; what can never be one is U+FFFD."""
        if not self._strip and not self._utf8.buffer and token not in self._skipped:
            text = self._text_of(token)
            if text is not None:
                return text
        data = self._visible(token)
        if self._strip and data:
            self._strip = False
            data = data.removeprefix(b" ")
        return self._utf8.decode(data)

    def flush(self) -> str:
        return self._utf8.decode(b"", final=True)


class WindowDecoder:
    """For other tokenizers: what the newest tokens add to the text of the few before them."""

    _CONTEXT = 6
    _PATIENCE = 8

    def __init__(
        self, pieces: Pieces, skipped: frozenset[int], spaces: bool, prompt: Sequence[int]
    ) -> None:
        self._decode = pieces.decode_whole
        self._skipped = skipped
        self._tight = frozenset() if spaces else pieces.added_ids
        self._last: int | None = None
        tail = prompt[-self._CONTEXT :] if prompt else ()
        self._ids = [token for token in tail if token not in skipped]
        self._read = len(self._ids)

    def step(self, token: int) -> str:
        """Text that ends in U+FFFD waits, `_PATIENCE` tokens at most, for what makes it whole."""
        if token in self._skipped:
            return ""
        last, self._last = self._last, token
        if token in self._tight and last in self._tight:
            text = self.flush() + self._decode([token])
            self._ids, self._read = [token], 1
            return text
        self._ids.append(token)
        before, text = self._decode(self._ids[: self._read]), self._decode(self._ids)
        waiting = len(text) <= len(before) or text.endswith("\ufffd")
        if waiting and len(self._ids) - self._read < self._PATIENCE:
            return ""
        self._ids = self._ids[self._read :]
        self._read = len(self._ids)
        return text[len(before) :]

    def flush(self) -> str:
        text = self._decode(self._ids)[len(self._decode(self._ids[: self._read])) :]
        self._read = len(self._ids)
        return text
