"""What the terminal of `shoal serve` shows: phases while it starts, a banner when it is ready."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import IO, NamedTuple

from .. import __version__
from .config import ServeConfig, warnings
from .link import ModelCard
from .logs import folder
from .screen import Screen, Terminal

PROMPT = "What is shoal?"


class Loaded(NamedTuple):
    """A model that is ready; `table` and `phases` are those of `Capacity`."""

    card: ModelCard
    table: Iterable[tuple[str, str]] = ()
    phases: Iterable[tuple[str, float]] = ()


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

    def ready(self, config: ServeConfig, models: Sequence[Loaded]) -> None:
        """Print the banner."""
        self._screen.hide()
        for line in warnings(config):
            self.warn(line)
        seconds = time.monotonic() - self._begin
        spent = f"after {seconds:.1f} s ({_spent(self._spent)})" if self._spent else "now"
        if self._on_ready is not None:
            self._on_ready()
        lines = banner(config, models, spent, detached=self._detached)
        self._screen.greet("\n".join(lines))


def _volume(num_bytes: int, seconds: float) -> str:
    if not num_bytes:
        return ""
    scale, unit = (1e9, "GB") if num_bytes >= 1e9 else (1e6, "MB")
    return (
        f"  {num_bytes / scale:.1f} {unit}, {num_bytes / scale / max(seconds, 1e-3):.1f} {unit}/s"
    )


def banner(
    config: ServeConfig, models: Sequence[Loaded], ready: str, *, detached: bool = False
) -> list[str]:
    """The lines that greet an operator: where, what, how to try it, how to stop it."""
    name, key = models[0].card.names[0], bool(config.api_key)
    if len(models) == 1 and (inside := _spent(models[0].phases)):
        ready += f"; the engine: {inside}"
    return [
        "",
        f"shoal {__version__} is ready",
        "",
        *_columns(
            ("Address", f"{config.url}/v1"),
            *(("Model", _described(model.card, config)) for model in models),
            ("Logs", str(folder(config))),
            ("Ready", ready),
        ),
        "",
        *(line for model in models for line in _inside(model, titled=len(models) > 1)),
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


def _described(card: ModelCard, config: ServeConfig) -> str:
    words = f"{', '.join(card.names)} (up to {card.max_model_len:,} tokens)"
    replicas = config.model(card.names[0]).replicas
    return words if replicas == 1 else f"{words}, {replicas} replicas"


def _inside(model: Loaded, *, titled: bool) -> list[str]:
    """The engine's own table; among several models, under the model's name and with its phases."""
    rows = [*model.table]
    if not titled:
        return [*_columns(*rows), ""] if rows else []
    if spent := _spent(model.phases):
        rows.append(("Started in", spent))
    return [f"{model.card.names[0]}:", *_columns(*rows), ""]


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
