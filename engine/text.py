"""Between text and token ids: encoding, exact incremental decoding, stop strings.

Needs neither torch nor (but for tokenizers without a tokenizer.json) transformers.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from typing import Any

from . import tokenizer_files
from .confined import ConfinedTemplate
from .detokenize import ByteDecoder, Decoder, WindowDecoder
from .errors import InvalidRequest
from .request import FinishReason, SamplingParams, Update
from .template import ChatTemplate

LONG = 4096
"""A text of so many characters takes a millisecond or more: other threads run meanwhile."""

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_of_char() -> dict[str, int]:
    """The alphabet of byte-level BPE: each byte as one printable character.

    Source: GPT-2 (Radford et al., 2019).
    """
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(others)}


_BYTE_OF_CHAR = _byte_of_char()


class Tokenizer:
    """A model's tokenizer and chat template. Safe to share between threads.

    `confined` has templates rendered by a process of their own, see `confined.py`; `executor` is
    then the thread to call `render` on. `info` is its configuration as tokenizer_config.json has
    it, in JSON's own types, with `chat_template` the template that is used.
    """

    def __init__(self, files: tokenizer_files.TokenizerFiles, *, confined: bool = False) -> None:
        added = files.backend.get_added_tokens_decoder()
        self._backend = files.backend
        self._bytes: dict[int, bytes] = {}
        self._texts: dict[int, str | None] = {}
        self._kind = _kind(files.backend)
        plain = ChatTemplate(sources=files.templates, special_tokens=files.special_tokens)
        held = ConfinedTemplate(plain) if confined else None
        self._chat: ChatTemplate | ConfinedTemplate = held or plain
        self.executor: Executor | None = held.executor if held else None
        self.added_ids = frozenset(added)
        self.special_ids = frozenset(id for id, token in added.items() if token.special)
        self.special_tokens: Mapping[str, str] = files.special_tokens
        self.info: Mapping[str, Any] = files.settings

    @classmethod
    def load(
        cls,
        path: str,
        *,
        revision: str | None = None,
        download_dir: str | None = None,
        chat_template: str | None = None,
        confined: bool = False,
    ) -> Tokenizer:
        """The tokenizer of a folder or hub id; `chat_template` replaces its own.

        Raises LoadError, and ConfigError where the template is missing or does not parse.
        """
        files = tokenizer_files.read(path, revision, download_dir, chat_template)
        return cls(files, confined=confined)

    def close(self) -> None:
        """End the process that renders its template, if it has one."""
        if isinstance(self._chat, ConfinedTemplate):
            self._chat.close()

    @property
    def vocab_size(self) -> int:
        """How many ids it knows, added tokens included; a model's vocabulary may be padded."""
        return self._backend.get_vocab_size()

    @property
    def chat_templates(self) -> Mapping[str, str]:
        """The sources of the chat templates by name; "default" is the one for plain chat."""
        return self._chat.sources

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The ids of `text`, with the special tokens that the model expects around it."""
        backend = self._backend
        try:
            if len(text) < LONG:
                found = backend.encode(text, add_special_tokens=add_special_tokens)
            else:
                # Only for a batch, be it of one, does the library give up the interpreter's lock.
                (found,) = backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
            return list(found.ids)
        except (TypeError, UnicodeEncodeError) as error:
            raise InvalidRequest(
                f"a prompt must be Unicode text; this one cannot be encoded: {error}", "prompt"
            ) from error

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """The text of `ids`. Ids outside the vocabulary have none.

        Bytes that are not UTF-8 become U+FFFD, one for each ill-formed part, and spoil nothing
        around them.
        """
        decoder = self.decoder(skip_special_tokens=skip_special_tokens)
        return "".join([*map(decoder.step, ids), decoder.flush()])

    def decoder(
        self,
        *,
        skip_special_tokens: bool = True,
        spaces_between_special_tokens: bool = True,
        prompt: Sequence[int] = (),
    ) -> Decoder:
        """An incremental decoder of what follows `prompt`."""
        skipped = self.special_ids if skip_special_tokens else frozenset()
        if self._kind is None:
            return WindowDecoder(self, skipped, spaces_between_special_tokens, prompt)
        return ByteDecoder(self, skipped, self._kind == "stripped", prompt)

    def decode_whole(self, ids: Sequence[int]) -> str:
        """`ids` by the tokenizer's own decoder, special tokens included, all at once."""
        return self._backend.decode(ids, skip_special_tokens=False)

    def token_text(self, id: int) -> str:
        """What one token adds to a text, with its leading space; U+FFFD for half a character."""
        return self.token_bytes(id).decode("utf-8", "replace")

    def token_bytes(self, id: int) -> bytes:
        """The bytes that one token adds to a text."""
        found = self._bytes.get(id)
        if found is None:
            found = self._bytes[id] = self._read_bytes(id)
        return found

    def whole_text(self, id: int) -> str | None:
        """The same as text; None where they begin or end within a character, or are no text."""
        try:
            return self._texts[id]
        except KeyError:
            self._texts[id] = text = _decoded(self.token_bytes(id))
            return text

    def _read_bytes(self, id: int) -> bytes:
        piece = self._backend.id_to_token(id)
        if piece is None:
            return b""
        if self._kind is None:
            return self.decode_whole([id]).encode()
        if self._kind == "bytes":
            try:
                return bytes(_BYTE_OF_CHAR[char] for char in piece)
            except KeyError:
                return piece.encode()
        byte = _BYTE_PIECE.fullmatch(piece)
        return bytes([int(byte[1], 16)]) if byte else piece.replace("▁", " ").encode()

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **kwargs: Any,
    ) -> str:
        """The prompt text of a conversation; encode it with `add_special_tokens=False`.

        `kwargs`: `documents`, `chat_template`, and variables for the template. Raises
        InvalidRequest.
        """
        return self._chat.render(
            messages,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            **kwargs,
        )


def _decoded(data: bytes) -> str | None:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def _kind(backend: tokenizer_files.Backend) -> str | None:
    """How pieces become bytes.

    "bytes": byte-level BPE. "spaced": sentencepiece, where `▁` is a space and <0xXX> a byte;
    "stripped": the same, and the whole text loses its first space. None: neither, so that only the
    tokenizer's own decoder knows.
    """
    decoder = getattr(backend, "decoder", None)
    if decoder is None:
        return None
    state = json.loads(decoder.__getstate__())
    steps = state["decoders"] if state["type"] == "Sequence" else [state]
    if [step["type"] for step in steps] == ["ByteLevel"]:
        return "bytes"
    if [step["type"] for step in steps[:3]] != ["Replace", "ByteFallback", "Fuse"]:
        return None
    if steps[0]["pattern"] != {"String": "▁"} or steps[0]["content"] != " ":
        return None
    if not steps[3:]:
        return "spaced"
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    return "stripped" if steps[3:] == [strip] else None


class TextStream:
    """The text of one sequence as its tokens come, up to the first stop string.

    A stop string counts from the character that completes it, wherever tokens part, and not in the
    first `min_tokens` tokens; of two that are complete at the same character the longer one counts.
    `emitted` are tokens that an earlier stream of the same sequence was pushed: this one goes on
    where that one stood.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        params: SamplingParams,
        prompt: Sequence[int] = (),
        emitted: Sequence[int] = (),
    ) -> None:
        self.num_tokens = 0
        self.stopped: str | None = None
        self._stops = sorted(params.stops, key=len, reverse=True)
        self._include = params.include_stop_str_in_output
        self._min_tokens = params.min_tokens
        self._reach = max(map(len, self._stops), default=1) - 1
        self._pieces: list[str] = []
        self._recent = ""
        self._shown = 0
        self._decoder: Decoder | None = None
        if params.detokenize:
            self._decoder = tokenizer.decoder(
                skip_special_tokens=params.skip_special_tokens,
                spaces_between_special_tokens=params.spaces_between_special_tokens,
                prompt=prompt,
            )
        self.push(emitted)

    @property
    def text(self) -> str:
        """All that was given out."""
        return "".join(self._pieces)

    def take(self, update: Update) -> str:
        """`push` of what an engine's update brings."""
        return self.push(
            update.tokens,
            last=update.finish is not None,
            stop_token=update.finish is FinishReason.STOP,
        )

    def push(self, tokens: Sequence[int], last: bool = False, stop_token: bool = False) -> str:
        """New text that is safe to show: no half character, no beginning of a stop string.

        `last` gives out what was held back. `stop_token`: the last of `tokens` ended the sequence
        and is text only where stop strings are. After a stop string further tokens are ignored.
        """
        for i, token in enumerate(tokens):
            if self.stopped is not None:
                break
            self.num_tokens += 1
            ends = stop_token and i == len(tokens) - 1
            if self._decoder is not None and (self._include or not ends):
                self._extend(self._decoder.step(token))
        if last and self.stopped is None and self._decoder is not None:
            self._extend(self._decoder.flush())
        return self._show(all=last or self._include or self.stopped is not None)

    def _extend(self, new: str) -> None:
        old = len(self._recent)
        self._recent += new
        if not self._stops or not new or self.num_tokens <= self._min_tokens:
            return
        best = len(self._recent) + 1
        for stop in self._stops:
            start = self._recent.find(stop, max(0, old - len(stop) + 1))
            if start >= 0 and start + len(stop) < best:
                best, self.stopped = start + len(stop), stop
        if self.stopped is not None:
            self._recent = self._recent[: best - (0 if self._include else len(self.stopped))]

    def _show(self, all: bool) -> str:
        if not self._stops:
            piece, self._recent = self._recent, ""
            if piece:
                self._pieces.append(piece)
            return piece
        safe = len(self._recent) - (0 if all else self._held())
        piece = self._recent[self._shown : safe]
        drop = min(safe, max(0, len(self._recent) - self._reach))
        self._recent, self._shown = self._recent[drop:], safe - drop
        if piece:
            self._pieces.append(piece)
        return piece

    def _held(self) -> int:
        """How many characters at the end may begin a stop string."""
        held = 0
        for stop in self._stops:
            start = max(0, len(self._recent) - len(stop) + 1)
            while (start := self._recent.find(stop[0], start)) >= 0:
                if len(self._recent) - start <= held:
                    break
                if stop.startswith(self._recent[start:]):
                    held = len(self._recent) - start
                    break
                start += 1
        return held


def with_bad_words(tokenizer: Tokenizer, params: SamplingParams) -> SamplingParams:
    """`params` with `bad_words_ids` for its `bad_words`, as they begin a text and as they follow a
    space.
    """
    if not params.bad_words:
        return params
    found: dict[tuple[int, ...], None] = dict.fromkeys(tuple(ids) for ids in params.bad_words_ids)
    for word in params.bad_words:
        bare = tuple(tokenizer.encode(word.lstrip() or word, add_special_tokens=False))
        spaced = tuple(tokenizer.encode(" " + word.lstrip(), add_special_tokens=False))
        found.update(dict.fromkeys(ids for ids in (bare, spaced) if ids))
    return dataclasses.replace(params, bad_words_ids=tuple(found))
