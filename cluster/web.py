"""How uvicorn serves a gateway, with Ray and without."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from typing import Any, Literal

import uvicorn

from ..engine.errors import ConfigError
from .config import ServeConfig
from .connection import Connection

KEEP_ALIVE_S = 75
"""Longer than the pools of clients keep an idle connection, so that they part with it first."""

CLOSE_S = 1
"""What connections get to end once a server is told to: the streams had their time before."""

TICK_S = 1.0
"""How often the time that answers are dated with is set."""


class Server(uvicorn.Server):
    """Sleeps while nobody asks anything: uvicorn's own looks ten times a second whether it is to
    end.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._told_to_end = asyncio.Event()

    def end(self) -> None:
        """Let it end; called on its event loop."""
        self.should_exit = True
        self._told_to_end.set()

    async def main_loop(self) -> None:
        """See uvicorn."""
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_S):
                    await self._told_to_end.wait()


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


def check_tls(config: ServeConfig) -> None:
    """Read the certificate and its key, if https is served. Raises ConfigError."""
    if not config.ssl_certfile or not config.ssl_keyfile:
        return
    for key, file in (("ssl_certfile", config.ssl_certfile), ("ssl_keyfile", config.ssl_keyfile)):
        try:
            open(file, "rb").close()
        except OSError as error:
            raise ConfigError(f"{key} {file} cannot be read: {error.strerror}", key) from None
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        # A key behind a passphrase would ask the terminal for it; the empty one is refused.
        context.load_cert_chain(config.ssl_certfile, config.ssl_keyfile, password="")
    except (ssl.SSLError, ValueError) as error:
        raise ConfigError(
            f"ssl_certfile {config.ssl_certfile} and ssl_keyfile {config.ssl_keyfile} are not a "
            f"certificate and its key in PEM form, without a passphrase: {error}",
            "ssl_certfile",
        ) from None
