"""Models of ModelScope: the switch, the extra, its cache, its refusals."""

from __future__ import annotations

import errno
import fnmatch
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from shoal.engine.errors import LoadError
from shoal.engine.model import hub as hub_module
from shoal.engine.model import hub_modelscope
from shoal.engine.model.hub import cached_models, fetch, find_model, uses_modelscope

from .fake_modelscope import fake_modelscope

FILES = {
    "config.json": b"{}",
    "tokenizer.json": b"{}",
    "model.safetensors": b"weights" * 100,
    "pytorch_model.bin": b"unwanted",
    "modeling_own.py": b"raise SystemExit('code of a repository was run')",
}
WHOLE = ["config.json", "model.safetensors", "tokenizer.json"]


class NotExistError(Exception):
    """Called as modelscope's own."""


class Played:
    """ModelScope's client over a dictionary, with its cache layout."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.calls: list[dict[str, Any]] = []
        self.failure: Exception | None = None

    def list_repo_files(self, model: str, kind: str, *, revision: str | None) -> list[Any]:
        assert kind == "model"
        if self.failure:
            raise self.failure
        return [SimpleNamespace(path=name, size=len(body)) for name, body in FILES.items()]

    def download_repo(
        self,
        model: str,
        kind: str,
        *,
        revision: str | None,
        cache_dir: str | None,
        local_files_only: bool = False,
        allow_patterns: list[str] | None = None,
        ignore_patterns: list[str] | None = None,
        progress_callbacks: list[Any] | None = None,
    ) -> str:
        self.calls.append({"model": model, "revision": revision, "cache_dir": cache_dir})
        base = Path(cache_dir or self.place) / "models" / model.replace("/", "--")
        folder = base / "snapshots" / (revision or "master")
        if local_files_only:
            if not folder.is_dir():
                raise ValueError("nothing cached")
            return str(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, body in FILES.items():
            if any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns or ()):
                (folder / name).write_bytes(body)
                for callback in progress_callbacks or ():
                    told = callback(name, len(body))
                    told.update(len(body))
                    told.end()
        return str(folder)


@pytest.fixture
def played(monkeypatch: Any, tmp_path: Path) -> Played:
    played = Played(tmp_path / "cache")
    monkeypatch.setenv("SHOAL_USE_MODELSCOPE", "true")
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(hub_module, "_found", {})
    monkeypatch.setattr(hub_modelscope, "client", lambda: played)
    return played


def held(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("name", ["SHOAL_USE_MODELSCOPE", "VLLM_USE_MODELSCOPE"])
def test_the_switch(monkeypatch: Any, name: str) -> None:
    for other in ("SHOAL_USE_MODELSCOPE", "VLLM_USE_MODELSCOPE"):
        monkeypatch.delenv(other, raising=False)
    assert not uses_modelscope()
    for value, on in (("True", True), ("1", True), ("false", False), ("0", False), ("", False)):
        monkeypatch.setenv(name, value)
        assert uses_modelscope() is on


def test_fetches_what_is_needed(played: Played, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    assert held(find_model("shoal/open", weights=False)) == ["config.json", "tokenizer.json"]
    (part,) = cached_models()
    assert (part.name, part.revision, part.complete) == ("shoal/open", "master", False)
    folder = fetch("shoal/open", on_progress=lambda done, total: seen.append((done, total)))
    assert held(folder) == WHOLE and folder.is_relative_to(tmp_path / "cache")
    assert seen == [(700, 700)]
    (whole,) = cached_models()
    assert (whole.path, whole.num_bytes, whole.complete) == (folder, 704, True)


def test_revision_and_folder(played: Played, tmp_path: Path) -> None:
    folder = fetch("shoal/open", revision="v2", download_dir=str(tmp_path / "disk"))
    assert folder.name == "v2" and folder.is_relative_to(tmp_path / "disk")
    assert {(c["revision"], c["cache_dir"]) for c in played.calls} == {
        ("v2", str(tmp_path / "disk"))
    }
    assert cached_models() == []
    assert [model.name for model in cached_models(str(tmp_path / "disk"))] == ["shoal/open"]


def test_offline(played: Played, monkeypatch: Any) -> None:
    folder = fetch("shoal/open")
    monkeypatch.setattr(hub_module, "_found", {})
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert find_model("shoal/open") == folder
    with pytest.raises(LoadError, match=r"HF_HUB_OFFLINE is set, and 'shoal/other' is neither"):
        find_model("shoal/other")


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (NotExistError("gone"), "no folder and no ModelScope model 'shoal/open': check the name"),
        (PermissionError("no"), "from ModelScope failed: PermissionError: no"),
        (ConnectionError("refused"), "ModelScope cannot be reached"),
        (OSError(errno.ENOSPC, "No space left on device"), "disk is full.*MODELSCOPE_CACHE"),
    ],
)
def test_refusals(played: Played, failure: Exception, words: str) -> None:
    played.failure = failure
    with pytest.raises(LoadError, match=words):
        fetch("shoal/open")


def test_without_the_package(monkeypatch: Any) -> None:
    monkeypatch.setenv("VLLM_USE_MODELSCOPE", "1")
    monkeypatch.setitem(sys.modules, "modelscope_hub", None)
    with pytest.raises(LoadError, match=r"pip install 'shoal\[modelscope\]'"):
        find_model("shoal/open")


ASK = """
import sys
from shoal.engine.errors import LoadError
from shoal.engine.model.hub import cached_models, fetch
seen = []
try:
    print(fetch(sys.argv[1], on_progress=lambda done, total: seen.append((done, total))))
    print(*sorted(seen)[-1:], [(m.name, m.revision, m.complete) for m in cached_models()])
except LoadError as error:
    print("refused:", error)
assert "torch" not in sys.modules
"""


@pytest.mark.skipif(not find_spec("modelscope_hub"), reason="modelscope is not installed")
def test_the_real_client(tmp_path: Path) -> None:
    with fake_modelscope({"shoal/open": FILES}) as hub:
        environment = {
            **os.environ,
            "SHOAL_USE_MODELSCOPE": "1",
            "MODELSCOPE_CACHE": str(tmp_path),
            "MODELSCOPE_ENDPOINT": hub.address,
            "HF_HUB_OFFLINE": "0",
        }

        def ask(model: str, **more: str) -> str:
            command = [sys.executable, "-c", ASK, model]
            return subprocess.run(
                command, env={**environment, **more}, capture_output=True, text=True, check=True
            ).stdout

        first = ask("shoal/open").splitlines()
        folder = Path(first[0])
        assert held(folder)[-3:] == WHOLE and folder.is_relative_to(tmp_path)
        assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
        assert first[1] == "(700, 700) [('shoal/open', 'master', True)]"
        assert hub.seen["GET repo model.safetensors"] == 1
        assert "no ModelScope model 'shoal/none'" in ask("shoal/none")
        asked = hub.seen.total()
        assert ask("shoal/open", HF_HUB_OFFLINE="1").startswith(str(folder))
        assert hub.seen.total() == asked
    assert ask("shoal/open").startswith(str(folder)), "the cache serves where the hub is gone"
