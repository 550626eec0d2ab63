"""`shoal complete`: how a model goes on from a text."""

from __future__ import annotations

import sys
from contextlib import closing
from typing import Annotated

import typer

from ...engine.errors import ConfigError
from ..ctrl_c import heard
from ..escapes import clean
from .options import Heat, MaxTokens, Model, Secret, Url, client, sampling

Text = Annotated[
    str | None, typer.Argument(metavar="TEXT", help="Text to go on from; - reads it from stdin.")
]
Quick = Annotated[
    str | None, typer.Option("--quick", "-q", help="The text, as a flag.", metavar="TEXT")
]


def complete(
    prompt: Text = None,
    quick: Quick = None,
    url: Url = None,
    model: Model = None,
    max_tokens: MaxTokens = None,
    temperature: Heat = None,
    api_key: Secret = None,
) -> None:
    """Print how a model goes on from a text."""
    if (prompt is None) == (quick is None):
        raise ConfigError('give one text: shoal complete "Once upon a time", or - for stdin')
    text = sys.stdin.read() if prompt == "-" else prompt or quick
    server = client(url, api_key)
    body = {
        "model": model or server.model(),
        "prompt": text,
        **sampling(max_tokens, temperature),
    }
    harmless = clean if sys.stdout.isatty() else str
    with heard(), closing(server.stream("/v1/completions", body)) as chunks:
        for chunk in chunks:
            for choice in chunk.get("choices") or ():
                print(harmless(choice.get("text") or ""), end="", flush=True)
    print()
