"""How uvicorn serves a gateway, with Ray and without."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Literal

import uvicorn

from .config import ServeConfig
from .connection import Connection

KEEP_ALIVE_S = 75
"""Longer than the pools of clients keep an idle connection, so that they part with it first."""

CLOSE_S = 1
"""What connections get to end once a server is told to: the streams had their time before."""


def web_config(
    config: ServeConfig, app: Any, *, lifespan: Literal["auto", "off"], tls: bool = True
) -> uvicorn.Config:
    """The settings of a server of `app`; uvicorn's own logging stays off."""
    return uvicorn.Config(
        app,
        host=config.host,
        port=config.port,
        log_level=config.uvicorn_log_level,
        log_config=None,
        access_log=False,
        http=Connection,
        ws="none",
        lifespan=lifespan,
        ssl_keyfile=config.ssl_keyfile if tls else None,
        ssl_certfile=config.ssl_certfile if tls else None,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=CLOSE_S,
        server_header=False,
    )


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """The event loop that uvicorn would choose: uvloop where it is installed."""
    return uvicorn.Config("", log_config=None).get_loop_factory()
