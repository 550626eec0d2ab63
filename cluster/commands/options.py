"""Flags that the commands which talk to a server share."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from ..client import Client
from ..running import running

HERE = "http://127.0.0.1:8000"

Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        "--base-url",
        help=f"Address of the server (default: the one that runs here, or {HERE}).",
        metavar="URL",
    ),
]
Model = Annotated[
    str | None,
    typer.Option("--model", "--model-name", help="Served name (default: the server's first)."),
]
Secret = Annotated[str | None, typer.Option(help="Key of the server (default: SHOAL_API_KEY).")]
MaxTokens = Annotated[int | None, typer.Option(help="Most tokens of an answer.", metavar="N")]
Heat = Annotated[float | None, typer.Option(help="0 always takes the likeliest.", metavar="X")]


def client(url: str | None, api_key: str | None) -> Client:
    """A client of `url`; without a key, with the first of the environment's. Raises ClientError."""
    return Client(url or _nearest(), api_key or os.environ.get("SHOAL_API_KEY", "").split(",")[0])


def _nearest() -> str:
    """The only serve of this user here, whatever its port; else the usual address."""
    found = running()
    return found[0].url if len(found) == 1 else HERE


def sampling(max_tokens: int | None, temperature: float | None) -> dict[str, object]:
    """The fields of a request that were asked for."""
    options = {"max_tokens": max_tokens, "temperature": temperature}
    return {name: value for name, value in options.items() if value is not None}
