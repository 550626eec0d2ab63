"""What keeps an application from serving."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import pytest
from shoal.cluster import readiness
from shoal.cluster.banner import Progress
from shoal.cluster.settings import serve_config
from shoal.engine.errors import EngineLost


def test_one_that_is_taken_off_while_it_starts_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nothing = SimpleNamespace(failure=lambda named: None, all=lambda kind: {})
    monkeypatch.setattr(readiness, "Facts", lambda name: nothing)
    monkeypatch.setattr(readiness.serve, "status", lambda: SimpleNamespace(applications={}))
    with pytest.raises(EngineLost, match="shoal was taken off its Ray before it was ready"):
        readiness.await_ready(serve_config({}, {}), threading.Event(), Progress())


class Door(BaseHTTPRequestHandler):
    """A door that is open."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"status": "ready"}')

    def log_message(self, *said: object) -> None:
        pass


def test_the_door_is_asked_past_the_proxies_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(readiness, "Facts", lambda name: SimpleNamespace(all=lambda kind: {}))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = HTTPServer(("127.0.0.1", 0), Door)
    answering = threading.Thread(target=server.serve_forever)
    answering.start()
    try:
        assert readiness._health(serve_config({"port": server.server_port}, {})) == "ready"
    finally:
        server.shutdown()
        answering.join()
        server.server_close()
