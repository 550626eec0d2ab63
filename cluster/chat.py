"""`shoal chat` and `shoal complete`: a model's answers in the terminal, as they come."""

from __future__ import annotations

import sys
import time
from collections.abc import Generator
from contextlib import closing, suppress
from typing import IO, Any

from .client import Client, ClientError

Message = dict[str, str]


def chat(client: Client, model: str, system: str | None, options: dict[str, Any]) -> None:
    """Converse until the input ends.

    Ctrl-C interrupts an answer and keeps what was said; on an empty line it leaves nothing but a
    new prompt; Ctrl-D leaves. Without a terminal each line of the input is a turn.
    """
    talking = sys.stdin.isatty()
    if talking:
        _enable_editing()
        print(f"{model} at {client.url}. Ctrl-C interrupts an answer, Ctrl-D leaves.\n")
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    while (line := _ask(talking)) is not None:
        if line.strip():
            messages.append({"role": "user", "content": line})
            _turn(client, model, messages, options, talking)
    if talking:
        print()


def _turn(
    client: Client, model: str, messages: list[Message], options: dict[str, Any], talking: bool
) -> None:
    """Answer the last message, or take it back where the server refuses it."""
    body = {"model": model, "messages": messages, **options}
    try:
        answer = show(_deltas(client, body), sys.stdout, talking=talking)
    except ClientError as error:
        messages.pop()
        if not talking:
            raise
        print(f"error: {error.message}\n", file=sys.stderr)
        return
    messages.append({"role": "assistant", "content": answer})


def complete(client: Client, model: str, prompt: str, options: dict[str, Any]) -> None:
    """Print the model's continuation of `prompt`. Raises ClientError, KeyboardInterrupt."""
    chunks = client.stream("/v1/completions", {"model": model, "prompt": prompt, **options})
    with closing(chunks):
        for chunk in chunks:
            for choice in chunk.get("choices") or ():
                print(choice.get("text") or "", end="", flush=True)
    print()


def _deltas(client: Client, body: dict[str, Any]) -> Generator[str, None, None]:
    with closing(client.stream("/v1/chat/completions", body)) as chunks:
        for chunk in chunks:
            for choice in chunk.get("choices") or ():
                yield (choice.get("delta") or {}).get("content") or ""


def show(pieces: Generator[str, None, None], out: IO[str], *, talking: bool) -> str:
    """Write pieces as they come and return their sum.

    `talking`: Ctrl-C ends them early, and a note tells how long they took.
    """
    said: list[str] = []
    begin = time.monotonic()
    first: float | None = None
    stopped = ""
    try:
        for piece in pieces:
            if piece and first is None:
                first = time.monotonic() - begin
            said.append(piece)
            out.write(piece)
            out.flush()
    except KeyboardInterrupt:
        if not talking:
            raise
        stopped = ", interrupted"
    finally:
        pieces.close()
    took = time.monotonic() - begin
    out.write("\n")
    if talking:
        times = f"first word after {first or took:.2f} s, all after {took:.2f} s"
        out.write(f"\033[2m[{times}{stopped}]\033[0m\n\n")
    out.flush()
    return "".join(said)


def _ask(talking: bool) -> str | None:
    """The next line of the user, or None at the end."""
    while True:
        try:
            return input("> " if talking else "")
        except EOFError:
            return None
        except KeyboardInterrupt:
            print()


def _enable_editing() -> None:
    """Arrow keys and history in `input`, where readline is there."""
    with suppress(ImportError):
        import readline  # noqa: F401
