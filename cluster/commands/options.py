"""Flags that the commands which talk to a server share."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from ..client import Client

HERE = "http://127.0.0.1:8000"

Url = Annotated[
    str, typer.Option("--url", "--base-url", help="Address of the server.", metavar="URL")
]
Model = Annotated[
    str | None,
    typer.Option("--model", "--model-name", help="Served name (default: the server's first)."),
]
Secret = Annotated[str | None, typer.Option(help="Key of the server (default: SHOAL_API_KEY).")]
MaxTokens = Annotated[int | None, typer.Option(help="Most tokens of an answer.", metavar="N")]
Heat = Annotated[float | None, typer.Option(help="0 always takes the likeliest.", metavar="X")]


def client(url: str, api_key: str | None) -> Client:
    """A client of `url`; without a key, with the first of the environment's. Raises ClientError."""
    return Client(url, api_key or os.environ.get("SHOAL_API_KEY", "").split(",")[0])


def sampling(max_tokens: int | None, temperature: float | None) -> dict[str, object]:
    """The fields of a request that were asked for."""
    options = {"max_tokens": max_tokens, "temperature": temperature}
    return {name: value for name, value in options.items() if value is not None}
