"""What the terminal of `shoal serve` shows: phases while it starts, a banner when it is ready."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import IO

from .. import __version__
from .config import ServeConfig, warnings
from .link import ModelCard
from .logs import folder
from .screen import Screen, Terminal

PROMPT = "What is shoal?"


class Progress:
    """Tells a person how a start goes, and once that it is done.

    Each phase leaves one line when it ends. Safe from any thread. What is shown goes to `screen`,
    by default a Terminal of `out` and `progress`. `on_ready` is called when the banner is due;
    `detached`: nobody at a keyboard holds the process.
    """

    def __init__(
        self,
        out: IO[str] | None = None,
        progress: IO[str] | None = None,
        *,
        screen: Screen | None = None,
        detached: bool = False,
        on_ready: Callable[[], None] | None = None,
    ) -> None:
        self._screen = screen or Terminal(out, progress)
        self._detached = detached
        self._on_ready = on_ready
        self._bytes = 0
        self._begin = time.monotonic()
        self._spent: list[tuple[str, float]] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time what runs inside, under `name` (`start Ray`, `load the model`).

        Phases follow each other; they do not nest.
        """
        begin = time.monotonic()
        self._bytes = 0
        self._screen.show(name)
        try:
            yield
        finally:
            self._screen.hide()
        seconds = time.monotonic() - begin
        self._spent.append((name, seconds))
        self._screen.say(f"  {name:<24} {seconds:6.1f} s{_volume(self._bytes, seconds)}")

    def advance(self, done_bytes: int, total_bytes: int) -> None:
        """How far the phase under way has come."""
        self._bytes = done_bytes
        self._screen.advance(done_bytes, total_bytes)

    def note(self, line: str) -> None:
        """One line for the operator."""
        self._screen.say(f"  {line}")

    def warn(self, line: str) -> None:
        """One line that the operator should act on."""
        self._screen.say(f"  warning: {line}")

    def ready(
        self,
        config: ServeConfig,
        card: ModelCard,
        *,
        table: Iterable[tuple[str, str]] = (),
        phases: Iterable[tuple[str, float]] = (),
    ) -> None:
        """Print the banner.

        `table` and `phases` are those of `Capacity`.
        """
        self._screen.hide()
        for line in warnings(config):
            self.warn(line)
        seconds = time.monotonic() - self._begin
        spent = f"after {seconds:.1f} s ({_spent(self._spent)})" if self._spent else "now"
        inside = _spent(phases)
        ready = spent + (f"; the engine: {inside}" if inside else "")
        if self._on_ready is not None:
            self._on_ready()
        lines = banner(config, card, ready, table, detached=self._detached)
        self._screen.greet("\n".join(lines))


def _volume(num_bytes: int, seconds: float) -> str:
    if not num_bytes:
        return ""
    scale, unit = (1e9, "GB") if num_bytes >= 1e9 else (1e6, "MB")
    return (
        f"  {num_bytes / scale:.1f} {unit}, {num_bytes / scale / max(seconds, 1e-3):.1f} {unit}/s"
    )


def banner(
    config: ServeConfig,
    card: ModelCard,
    ready: str,
    table: Iterable[tuple[str, str]] = (),
    *,
    detached: bool = False,
) -> list[str]:
    """The lines that greet an operator: where, what, how to try it, how to stop it."""
    name, key = card.names[0], bool(config.api_key)
    table = tuple(table)
    return [
        "",
        f"shoal {__version__} is ready",
        "",
        *_columns(
            ("Address", f"{config.url}/v1"),
            ("Model", f"{', '.join(card.names)} (up to {card.max_model_len:,} tokens)"),
            ("Logs", str(folder(config))),
            ("Ready", ready),
        ),
        "",
        *([*_columns(*table), ""] if table else []),
        "Try it:",
        "",
        curl_line(config.url, name, key),
        "",
        *([] if find_spec("openai") else ["In Python, after `pip install openai`:", ""]),
        python_line(config.url, name, key),
        "",
        f"Or talk to it: shoal chat{_chat_arguments(config)}",
        *(_farewell(config) if detached else ["Ctrl-C stops it."]),
        "",
    ]


def _farewell(config: ServeConfig) -> list[str]:
    return [
        f"It runs in the background as process {os.getpid()}.",
        f"`shoal logs {config.port} -f` shows what it logs, `shoal stop {config.port}` stops it.",
    ]


def _columns(*rows: tuple[str, str]) -> list[str]:
    wide = max((len(label) for label, _ in rows), default=0)
    return [f"  {label:<{wide}}  {value}" for label, value in rows]


def _spent(phases: Iterable[tuple[str, float]]) -> str:
    return ", ".join(f"{name} {seconds:.1f}" for name, seconds in phases)


def _chat_arguments(config: ServeConfig) -> str:
    return "" if config.url == "http://127.0.0.1:8000" else f" --url {config.url}"


def curl_line(url: str, model: str, key: bool) -> str:
    """A chat request to paste into a shell; `key` sends $SHOAL_API_KEY."""
    header = ' -H "Authorization: Bearer $SHOAL_API_KEY"' if key else ""
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": PROMPT}]})
    quoted = body.replace("'", "'\\''")
    return (
        f"curl {url}/v1/chat/completions -H 'Content-Type: application/json'{header} -d '{quoted}'"
    )


def python_line(url: str, model: str, key: bool) -> str:
    """The same request as a line of Python, for the openai package."""
    secret = "__import__('os').environ['SHOAL_API_KEY']" if key else "'none'"
    return (
        f"from openai import OpenAI; print(OpenAI(base_url={url + '/v1'!r}, api_key={secret})"
        f".chat.completions.create(model={model!r}, messages=[{{'role': 'user', "
        f"'content': {PROMPT!r}}}]).choices[0].message.content)"
    )
