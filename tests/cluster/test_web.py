"""What uvicorn is given."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from shoal.cluster import web
from shoal.cluster.config import ServeConfig
from shoal.cluster.settings import serve_config
from shoal.cluster.web import check_tls
from shoal.engine.errors import ConfigError


def https(folder: Path) -> ServeConfig:
    files = {"ssl_certfile": str(folder / "cert.pem"), "ssl_keyfile": str(folder / "key.pem")}
    return serve_config(files, {})


def test_certificates_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    check_tls(serve_config({}, {}))
    for name, said in (("cert.pem", "cert.pem cannot be read"), ("key.pem", "key.pem cannot be")):
        with pytest.raises(ConfigError, match=said):
            check_tls(https(tmp_path))
        (tmp_path / name).write_text("no certificate")
    with pytest.raises(ConfigError, match="PEM form, without a passphrase"):
        check_tls(https(tmp_path))


def test_a_server_that_nobody_asks_sleeps_until_it_is_told_to_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(web, "TICK_S", 86_400.0)
    listener = socket.create_server(("127.0.0.1", 0))
    looks = []

    class Counted(web.Server):
        async def on_tick(self, counter: int) -> bool:
            looks.append(counter)
            return await super().on_tick(counter)

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def main() -> httpx.Response:
        server = Counted(web.web_config(serve_config({}, {}), answer, lifespan="off"))
        serving = asyncio.create_task(server.serve([listener]))
        async with httpx.AsyncClient(timeout=60) as client:
            answered = await client.get(f"http://127.0.0.1:{listener.getsockname()[1]}")
        server.end()
        await serving
        return answered

    answered = asyncio.run(main())
    assert answered.status_code == 204 and answered.headers["date"]
    assert len(looks) == 2
