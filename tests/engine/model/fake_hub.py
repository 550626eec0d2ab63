"""A hub on the loopback: the part of the Hugging Face HTTP API that fetching a model uses."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

GOOD_TOKEN = "hf_good"
MEMBER_TOKEN = "hf_member"
"""Of somebody who accepted the terms of gated models."""

INVALID = "Invalid credentials in Authorization header"


@dataclass
class Repo:
    """One repository. `cuts`: how many of its next answers break off half-way, by file."""

    files: dict[str, bytes]
    branches: tuple[str, ...] = ("main",)
    gated: bool = False
    private: bool = False
    tells_sizes: bool = True
    cuts: Counter[str] = field(default_factory=Counter)
    sizes: dict[str, int] = field(default_factory=dict)
    stall_s: float = 0.0

    @property
    def commit(self) -> str:
        """A name for the content."""
        text = json.dumps({name: _sha(body) for name, body in sorted(self.files.items())})
        return hashlib.sha1(text.encode()).hexdigest()


@dataclass
class FakeHub:
    """The hub. `seen` counts answers as "METHOD path"; `ranges` are the ranges asked for."""

    address: str
    repos: dict[str, Repo]
    seen: Counter[str] = field(default_factory=Counter)
    ranges: list[str] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)


@contextmanager
def fake_hub(**repos: Repo) -> Iterator[FakeHub]:
    """A hub with `repos`, whose names have `__` for the slash."""
    hub = FakeHub("", {name.replace("__", "/"): repo for name, repo in repos.items()})

    class Handler(_Handler):
        played = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _sha(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    played: FakeHub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.played.seen[f"{self.command} {path}"] += 1
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token:
            self.played.tokens.add(token)
        if token not in ("", GOOD_TOKEN, MEMBER_TOKEN):
            return self.refuse(401, None, INVALID)
        api = path.startswith("/api/models/")
        parts = path.removeprefix("/api/models").strip("/").split("/")
        repo = self.played.repos.get("/".join(parts[:2]))
        if repo is None or (repo.private and not token):
            return self.refuse(404 if token else 401, "RepoNotFound", "Repository not found")
        time.sleep(repo.stall_s)
        kind, revision = (parts[2:4] or ("revision", "main")) if len(parts) > 3 else (None, "main")
        if revision not in (*repo.branches, repo.commit):
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if api:
            return self.describe(repo, "/".join(parts[:2]), kind)
        if repo.gated and token != MEMBER_TOKEN:
            return self.refuse(403, "GatedRepo", "Access to this model is restricted")
        return self.file(repo, "/".join(parts[4:]))

    def describe(self, repo: Repo, name: str, kind: str | None) -> None:
        """What the repository holds, as an object or as a tree."""
        sizes = {file: repo.sizes.get(file, len(body)) for file, body in repo.files.items()}
        if kind == "tree":
            answer: Any = [
                {"type": "file", "path": file, "size": sizes[file], "oid": _sha(body)[:40]}
                for file, body in repo.files.items()
            ]
        else:
            told = repo.tells_sizes and "blobs=" in self.path
            siblings = [
                {"rfilename": file, **({"size": sizes[file]} if told else {})}
                for file in repo.files
            ]
            answer = {"id": name, "modelId": name, "sha": repo.commit, "siblings": siblings}
        self.answer(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def file(self, repo: Repo, name: str) -> None:
        """A file, or the range of it that was asked for; cut off where `cuts` says so."""
        if name not in repo.files:
            return self.refuse(404, "EntryNotFound", "Entry not found")
        body = repo.files[name]
        headers = {"ETag": f'"{_sha(body)}"', "X-Repo-Commit": repo.commit}
        asked = self.headers.get("Range")
        status = 200
        if asked:
            self.played.ranges.append(asked)
            first = int(asked.removeprefix("bytes=").split("-")[0])
            headers["Content-Range"] = f"bytes {first}-{len(body) - 1}/{len(body)}"
            body, status = body[first:], 206
        cut = self.command == "GET" and repo.cuts[name] > 0
        if cut:
            repo.cuts[name] -= 1
        self.answer(status, body, headers, cut=cut)

    def refuse(self, status: int, code: str | None, message: str) -> None:
        """An error as the hub words it."""
        headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
        self.answer(status, json.dumps({"error": message}).encode(), headers)

    def answer(self, status: int, body: bytes, headers: dict[str, str], cut: bool = False) -> None:
        """Send it; `cut` ends the connection half-way."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass
