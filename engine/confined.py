"""Chat templates rendered by a process that can do nothing else.

A model's template is foreign text. The sandbox of `template.py` keeps it from files and from
Python, but not from looping for ever or filling the memory. A server therefore renders in a child
process which can open no file and no socket, has so much memory, and is ended when it takes long.

    parent ── length, JSON: template and arguments of `ChatTemplate.render` ──> child
           <── length, JSON: {"text"} or {"error", "param"} ──────────────────
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import resource
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from .errors import InvalidRequest
from .template import ChatTemplate

CPU_S = 5
MEMORY_BYTES = 2 * 2**30
"""What rendering one conversation may take."""

TEXT_LENGTH = 256 * 2**20
_WALL_S = 60.0  # a machine may be busy: what counts is the time that it computes
_SECRET = re.compile("TOKEN|KEY|SECRET|PASS|CREDENTIAL", re.IGNORECASE)
_LENGTH = struct.Struct("<Q")


class ConfinedTemplate:
    """A ChatTemplate whose `render` happens elsewhere. Safe to share between threads.

    `executor` is one thread to call it on: the child renders one conversation after the other. It
    is started again after one that it did not survive.
    """

    def __init__(
        self, template: ChatTemplate, *, cpu_s: int = CPU_S, memory_bytes: int = MEMORY_BYTES
    ) -> None:
        self._template = template
        self._limits = {"cpu_s": cpu_s, "memory_bytes": memory_bytes}
        self._lock = threading.Lock()
        self._child = _Child(template, self._limits) if template.sources else None
        self.executor = ThreadPoolExecutor(1, "shoal-template")

    @property
    def sources(self) -> Mapping[str, str]:
        """See ChatTemplate."""
        return self._template.sources

    def render(self, messages: Any, **arguments: Any) -> str:
        """See ChatTemplate.render; messages and arguments must be JSON data."""
        try:
            asked = _packed({"messages": messages, **arguments})
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidRequest(
                f"messages and chat_template_kwargs must be JSON data: {error}", "messages"
            ) from error
        with self._lock:
            answer = self._ask(asked)
        if "error" in answer:
            raise InvalidRequest(answer["error"], answer["param"])
        return str(answer["text"])

    def close(self) -> None:
        """End the child; another `render` would start a new one."""
        with self._lock:
            self._end()

    def _end(self) -> None:
        if self._child is not None:
            self._child.end()
            self._child = None

    def _ask(self, asked: bytes) -> dict[str, Any]:
        if self._child is not None and not self._child.alive:
            self._end()
        if self._child is None:
            self._child = _Child(self._template, self._limits)
        try:
            return self._child.ask(asked)
        except (OSError, ValueError) as error:
            self._end()
            raise InvalidRequest(
                "the chat template cannot render these messages: it took more than "
                f"{self._limits['cpu_s']} s of computing, or failed ({error})",
                "messages",
            ) from error


class _Child:
    """The process that renders one template, and the socket to it."""

    def __init__(self, template: ChatTemplate, limits: Mapping[str, int]) -> None:
        ours, theirs = socket.socketpair()
        self._socket = ours
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env=_environment(),
                start_new_session=True,  # a Ctrl-C in the terminal is not for it
            )
        ours.settimeout(_WALL_S)
        held = {"sources": template.sources, "special_tokens": template.special_tokens}
        ours.sendall(_packed({name: dict(value) for name, value in held.items()}))
        ours.sendall(_packed(limits))

    @property
    def alive(self) -> bool:
        """Whether it waits for requests."""
        return self._process.poll() is None

    def ask(self, asked: bytes) -> dict[str, Any]:
        """The answer to one request. Raises OSError where there is none."""
        self._socket.sendall(asked)
        return _received(self._socket)

    def end(self) -> None:
        """End it, whatever it does."""
        self._socket.close()
        self._process.kill()
        self._process.wait()


def _environment() -> dict[str, str]:
    """This process's, without its credentials."""
    kept = {name: value for name, value in os.environ.items() if not _SECRET.search(name)}
    return kept | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def _packed(value: object) -> bytes:
    body = json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return _LENGTH.pack(len(body)) + body


def _received(source: socket.socket) -> dict[str, Any]:
    (length,) = _LENGTH.unpack(_exactly(source, _LENGTH.size))
    found: dict[str, Any] = json.loads(_exactly(source, length).decode("utf-8", "surrogatepass"))
    return found


def _exactly(source: socket.socket, count: int) -> bytes:
    body = bytearray()
    while len(body) < count:
        piece = source.recv(min(count - len(body), 1 << 20))
        if not piece:
            raise ConnectionError("the other side has ended")
        body += piece
    return bytes(body)


def _serve() -> None:
    """The child: render what comes, until the other side closes."""
    source = socket.socket(fileno=0)
    template, limits = ChatTemplate(**_received(source)), _received(source)
    _warm_up()
    _confine(limits["memory_bytes"])
    while True:
        try:
            asked = _received(source)
        except ConnectionError:
            return
        used = resource.getrusage(resource.RUSAGE_SELF)
        until = math.ceil(used.ru_utime + used.ru_stime) + limits["cpu_s"]
        resource.setrlimit(resource.RLIMIT_CPU, (until, resource.RLIM_INFINITY))
        source.sendall(_packed(_rendered(template, asked)))


def _rendered(template: ChatTemplate, asked: dict[str, Any]) -> dict[str, Any]:
    try:
        text = template.render(**asked)
    except InvalidRequest as error:
        return {"error": error.message, "param": error.param}
    if len(text) > TEXT_LENGTH:
        return {"error": f"messages render to {len(text)} characters", "param": "messages"}
    return {"text": text}


def _warm_up() -> None:
    """Import and read all that rendering needs: no file can be opened later."""
    time.localtime()
    plain = "{% for m in messages %}{{ m | tojson }}{{ strftime_now('%d') }}{% endfor %}"
    for source in (plain, "{{ raise_exception('no') }}", "{{ messages.a.b }}", "{% if"):
        with contextlib.suppress(InvalidRequest):
            ChatTemplate(sources={"default": source}, special_tokens={}).render([{"role": "user"}])


def _confine(memory_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))


if __name__ == "__main__":
    _serve()
