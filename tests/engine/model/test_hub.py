"""Finding a model: folders, and a hub that is played by a server on the loopback."""

from __future__ import annotations

import errno
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants
from shoal.engine.errors import LoadError
from shoal.engine.model.hub import find_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b'{"architectures": ["LlamaForCausalLM"]}',
    "model.safetensors": b"weights",
    "pytorch_model.bin": b"unwanted",
    "original/model.safetensors": b"unwanted",
}


class Hub(BaseHTTPRequestHandler):
    """Serves one repository, `shoal/open`, and refuses others by their name."""

    refusals = {  # noqa: RUF012
        "shoal/gated": (403, "GatedRepo"),
        "shoal/private": (401, "RepoNotFound"),
        "shoal/forbidden": (403, None),
    }

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].removeprefix("/api/models").lstrip("/")
        name = "/".join(path.split("/")[:2])
        if name in self.refusals:
            self.answer(*self.refusals[name])
        elif "/resolve/" in path:
            self.answer(200, body=FILES[path.partition(f"/resolve/{COMMIT}/")[2]])
        elif "/tree/" in path:
            tree = [
                {"type": "file", "path": file, "size": len(body), "oid": "0" * 40}
                for file, body in FILES.items()
            ]
            self.answer(200, body=json.dumps(tree).encode())
        elif path.endswith("/revision/none"):
            self.answer(404, "RevisionNotFound")
        else:
            siblings = [{"rfilename": file} for file in FILES]
            info = {"id": name, "sha": COMMIT, "siblings": siblings}
            self.answer(200, body=json.dumps(info).encode())

    def answer(self, status: int, code: str | None = None, body: bytes = b"") -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hash(body)}"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: Any) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    real = huggingface_hub.snapshot_download

    def at_the_loopback(*args: Any, **options: Any) -> str:
        return real(*args, endpoint=address, **options)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", at_the_loopback)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield address
    server.shutdown()
    server.server_close()


def test_a_folder_is_itself(tmp_path: Path) -> None:
    assert find_model(str(tmp_path)) == tmp_path
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(LoadError, match="is a file; give the folder"):
        find_model(str(tmp_path / "config.json"))
    for name in (str(tmp_path / "none"), "./none", "a/b/c", "~/none"):
        with pytest.raises(LoadError, match="no folder"):
            find_model(name)


def test_fetches_what_is_needed_and_keeps_it(hub: str, tmp_path: Path, monkeypatch: Any) -> None:
    folder = find_model("shoal/open", download_dir=str(tmp_path))
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))
    assert found == ["config.json", "model.safetensors"]
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert find_model("shoal/open", download_dir=str(tmp_path)) == folder
    with pytest.raises(LoadError, match=r"HF_HUB_OFFLINE is set.*hf download shoal/other"):
        find_model("shoal/other", download_dir=str(tmp_path))


@pytest.mark.parametrize(
    ("model", "revision", "words"),
    [
        ("shoal/gated", None, "gated: accept its terms at .*HF_TOKEN"),
        ("shoal/private", None, "no folder and no hub model 'shoal/private'"),
        ("shoal/forbidden", None, "refused the token, or the lack"),
        ("shoal/open", "none", "no revision 'none'"),
    ],
)
def test_refusals(hub: str, tmp_path: Path, model: str, revision: str | None, words: str) -> None:
    with pytest.raises(LoadError, match=words):
        find_model(model, revision=revision, download_dir=str(tmp_path))


def test_no_network(hub: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(Hub, "do_GET", lambda self: self.connection.close())
    with pytest.raises(LoadError, match="cannot be reached, and 'shoal/open' is neither"):
        find_model("shoal/open", download_dir=str(tmp_path))


def test_full_disk(hub: str, tmp_path: Path, monkeypatch: Any) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path))

    monkeypatch.setattr("huggingface_hub.file_download.http_get", full)
    with pytest.raises(LoadError, match=r"disk is full.*download_dir"):
        find_model("shoal/open", download_dir=str(tmp_path))
