"""ModelScope on the loopback: the part of its HTTP API that fetching a model uses."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass
class FakeModelScope:
    """The hub: files by repository. `seen` counts answers by path and file."""

    address: str
    repos: dict[str, dict[str, bytes]]
    seen: Counter[str] = field(default_factory=Counter)


@contextmanager
def fake_modelscope(repos: dict[str, dict[str, bytes]]) -> Iterator[FakeModelScope]:
    """A hub with `repos`."""
    hub = FakeModelScope("", repos)

    class Handler(_Handler):
        played = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    played: FakeModelScope

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        split = urlsplit(self.path)
        words = {name: values[0] for name, values in parse_qs(split.query).items()}
        parts = unquote(split.path).removeprefix("/api/v1/models/").split("/")
        files = self.played.repos.get("/".join(parts[:2]))
        file = words.get("FilePath", "")
        self.played.seen[f"{self.command} {'/'.join(parts[2:])} {file}".strip()] += 1
        if files is None:
            return self.tell(404, {"Code": 10010205001, "Message": "not found", "Success": False})
        if parts[2:] == ["repo", "files"]:
            listed = [
                {
                    "Path": name,
                    "Name": name.rpartition("/")[2],
                    "Type": "blob",
                    "Size": len(body),
                    "Sha256": hashlib.sha256(body).hexdigest(),
                    "Revision": "1",
                }
                for name, body in files.items()
            ]
            return self.tell(200, {"Code": 200, "Data": {"Files": listed}, "Success": True})
        if parts[2:] == ["repo"] and file in files:
            return self.send(200, files[file], "application/octet-stream")
        return self.tell(404, {"Code": 404, "Message": "no such path", "Success": False})

    def tell(self, status: int, answer: Any) -> None:
        self.send(status, json.dumps(answer).encode(), "application/json")

    def send(self, status: int, body: bytes, kind: str) -> None:
        asked = self.headers.get("Range")
        self.send_response(206 if asked and status == 200 else status)
        if asked and status == 200:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            end = int(last or len(body) - 1)
            self.send_header("Content-Range", f"bytes {first}-{end}/{len(body)}")
            body = body[int(first) : end + 1]
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass
