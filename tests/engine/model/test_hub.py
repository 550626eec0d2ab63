"""Finding a model: folders, and a hub that is played by a server on the loopback."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from shoal.engine.errors import LoadError
from shoal.engine.model import hub as hub_module
from shoal.engine.model.hub import cached_models, fetch, find_model

from .fake_hub import GOOD_TOKEN, MEMBER_TOKEN, FakeHub, Repo, fake_hub

CONFIG = b'{"architectures": ["LlamaForCausalLM"]}'
SHARDS = {f"model-{i}-of-3.safetensors": bytes([i]) * 300_000 for i in range(1, 4)}
INDEX = json.dumps({"weight_map": {f"w{name}": name for name in SHARDS}}).encode()


def repo(**options: Any) -> Repo:
    return Repo({"config.json": CONFIG, "model.safetensors": b"weights" * 1000}, **options)


def repos() -> dict[str, Repo]:
    extra = {
        "pytorch_model.bin": b"unwanted",
        "original/consolidated.00.pth": b"unwanted",
        "modeling_evil.py": b"raise SystemExit('code of a repository was run')",
        "onnx/config.json": b"{}",
        "tokenizer.json": b"{}",
    }
    open_ = repo(branches=("main", "v2"))
    open_.files.update(extra)
    sharded = Repo({"config.json": CONFIG, "model.safetensors.index.json": INDEX, **SHARDS})
    sharded.files["model.fp16.safetensors"] = b"unwanted"
    return {
        "shoal__open": open_,
        "shoal__sharded": sharded,
        "shoal__gated": repo(gated=True),
        "shoal__private": repo(private=True),
        "shoal__pickled": Repo({"config.json": CONFIG, "pytorch_model.bin": b"PK"}),
    }


@pytest.fixture
def hub(monkeypatch: Any, tmp_path: Path) -> Iterator[FakeHub]:
    with fake_hub(**repos()) as played:
        at(monkeypatch, played.address)
        yield played


@pytest.fixture(autouse=True)
def alone(monkeypatch: Any, tmp_path: Path) -> None:
    """A cache, a token and a memory of its own for each test."""
    monkeypatch.setattr(hub_module, "_found", {})
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def at(monkeypatch: Any, address: str) -> None:
    """What HF_ENDPOINT sets when huggingface_hub is imported."""
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def forget(monkeypatch: Any) -> None:
    """As a new process would."""
    monkeypatch.setattr(hub_module, "_found", {})


def held(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))


def test_a_folder_is_itself(tmp_path: Path) -> None:
    assert find_model(str(tmp_path)) == tmp_path
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(LoadError, match="is a file; give the folder"):
        find_model(str(tmp_path / "config.json"))
    for name in (str(tmp_path / "none"), "./none", "a/b/c", "~/none"):
        with pytest.raises(LoadError, match="no folder"):
            find_model(name)


def test_a_misspelled_folder(tmp_path: Path, monkeypatch: Any, hub: FakeHub) -> None:
    (tmp_path / "models" / "llama-7b").mkdir(parents=True)
    with pytest.raises(LoadError, match=r"did you mean '.*/models/llama-7b'\?"):
        find_model(str(tmp_path / "models" / "lama-7b"))
    with pytest.raises(LoadError, match=r"there is no folder '.*/model' either"):
        find_model(str(tmp_path / "model" / "llama-7b"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LoadError, match=r"no hub model.*did you mean 'models/llama-7b'\?"):
        find_model("models/lama-7b")


def test_fetches_what_is_needed_and_keeps_it(hub: FakeHub, monkeypatch: Any) -> None:
    folder = find_model("shoal/open")
    assert held(folder) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert (folder / "model.safetensors").read_bytes() == b"weights" * 1000
    asked = hub.seen.total()
    assert find_model("shoal/open") == folder
    assert hub.seen.total() == asked, "a process asks the hub once for a model"
    forget(monkeypatch)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert find_model("shoal/open") == folder
    assert hub.seen.total() == asked
    words = r"HF_HUB_OFFLINE is set, and 'shoal/opem'.*shoal pull shoal/opem.*holds 'shoal/open'"
    with pytest.raises(LoadError, match=words):
        find_model("shoal/opem")


def test_shards_are_those_of_the_index(hub: FakeHub) -> None:
    folder = fetch("shoal/sharded")
    assert held(folder) == sorted(["config.json", "model.safetensors.index.json", *SHARDS])


def test_load_format_chooses_the_files(hub: FakeHub, monkeypatch: Any) -> None:
    assert "pytorch_model.bin" in held(fetch("shoal/pickled"))
    folder = fetch("shoal/open", load_format="pt")
    assert held(folder) == ["config.json", "pytorch_model.bin", "tokenizer.json"]
    with pytest.raises(LoadError, match=r"holds no model\.safetensors, but pytorch_model\.bin"):
        fetch("shoal/pickled", load_format="safetensors")


def test_description_alone(hub: FakeHub) -> None:
    folder = find_model("shoal/open", weights=False)
    assert held(folder) == ["config.json", "tokenizer.json"]
    assert find_model("shoal/open", load_format="dummy") == folder
    assert held(folder) == ["config.json", "tokenizer.json"]
    assert find_model("shoal/open") == folder
    assert "model.safetensors" in held(folder)


def test_revision_and_folder(hub: FakeHub, tmp_path: Path) -> None:
    old = hub.repos["shoal/open"].commit
    first = fetch("shoal/open", revision="v2", download_dir=str(tmp_path / "disk"))
    assert first.is_relative_to(tmp_path / "disk") and first.name == old
    hub.repos["shoal/open"].files["model.safetensors"] = b"retrained"
    assert fetch("shoal/open", download_dir=str(tmp_path / "disk")).name != old
    assert not (tmp_path / "cache").exists()


def test_what_one_process_reads_is_of_one_commit(hub: FakeHub) -> None:
    described = find_model("shoal/open", weights=False)
    hub.repos["shoal/open"].branches += (hub.repos["shoal/open"].commit,)
    hub.repos["shoal/open"].files["extra.txt"] = b"a later commit"
    assert find_model("shoal/open") == described


def test_progress_counts_the_bytes(hub: FakeHub) -> None:
    seen: list[tuple[int, int]] = []
    fetch("shoal/sharded", on_progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (900_000, 900_000)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_what_the_cache_holds(hub: FakeHub, monkeypatch: Any, tmp_path: Path) -> None:
    assert cached_models() == []
    whole = fetch("shoal/sharded")
    part = find_model("shoal/open", weights=False)
    first, second = cached_models()
    assert (first.name, first.complete, first.path) == ("shoal/open", False, part)
    assert (second.name, second.complete, second.path) == ("shoal/sharded", True, whole)
    assert second.revision == hub.repos["shoal/sharded"].commit and second.refs == ("main",)
    assert 900_000 < second.num_bytes < 901_000
    (whole / "model-2-of-3.safetensors").unlink()
    assert not cached_models()[1].complete
    assert cached_models(str(tmp_path / "none")) == []


@pytest.mark.parametrize(
    ("model", "revision", "words"),
    [
        ("shoal/gated", None, "gated: accept its terms at .*/shoal/gated, then set HF_TOKEN"),
        ("shoal/private", None, "no folder and no hub model 'shoal/private'.*if it is private"),
        ("shoal/none", None, "no folder and no hub model 'shoal/none': check the name"),
        ("shoal/open", "none", "no revision 'none'"),
    ],
)
def test_refusals(hub: FakeHub, model: str, revision: str | None, words: str) -> None:
    with pytest.raises(LoadError, match=words):
        find_model(model, revision=revision)


def test_tokens(hub: FakeHub, monkeypatch: Any) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_stale")
    with pytest.raises(LoadError, match="refused the token for 'shoal/open': it is wrong or has"):
        find_model("shoal/open")
    monkeypatch.setenv("HF_TOKEN", GOOD_TOKEN)
    assert (fetch("shoal/private") / "model.safetensors").is_file()
    with pytest.raises(LoadError, match=r"gated: accept its terms .* as the owner of your token"):
        find_model("shoal/gated")
    monkeypatch.setenv("HF_TOKEN", MEMBER_TOKEN)
    assert (fetch("shoal/gated") / "model.safetensors").is_file()
    assert hub.tokens == {"hf_stale", GOOD_TOKEN, MEMBER_TOKEN}


def test_no_network(monkeypatch: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        at(monkeypatch, f"http://127.0.0.1:{taken.getsockname()[1]}")
        words = "cannot be reached, and 'shoal/open' is neither a folder nor whole in the cache"
        with pytest.raises(LoadError, match=words):
            find_model("shoal/open")


def test_a_whole_snapshot_needs_no_hub(hub: FakeHub, monkeypatch: Any) -> None:
    folder = fetch("shoal/sharded")
    part = find_model("shoal/open", weights=False)
    forget(monkeypatch)
    monkeypatch.setattr(hub, "repos", {})
    assert find_model("shoal/sharded") == folder
    assert find_model("shoal/open", weights=False) == part
    forget(monkeypatch)
    with pytest.raises(LoadError, match=r"no hub model 'shoal/open'.*the cache holds a part of it"):
        find_model("shoal/open")


def test_a_silent_hub(hub: FakeHub, monkeypatch: Any) -> None:
    hub.repos["shoal/open"].stall_s = 1.0
    monkeypatch.setattr("shoal.engine.model.hub_huggingface.ANSWER_S", 0.05)
    with pytest.raises(LoadError, match=r"'shoal/open' broke off .*files that are whole are kept"):
        find_model("shoal/open")


def test_a_cut_download_goes_on_where_it_was(hub: FakeHub, monkeypatch: Any) -> None:
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 50_000)
    hub.repos["shoal/sharded"].cuts["model-2-of-3.safetensors"] = 2
    folder = fetch("shoal/sharded")
    assert (folder / "model-2-of-3.safetensors").read_bytes() == SHARDS["model-2-of-3.safetensors"]
    assert sorted(hub.ranges) == ["bytes=150000-", "bytes=200000-"]


def test_a_download_that_is_cut_for_good(hub: FakeHub, monkeypatch: Any) -> None:
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    hub.repos["shoal/sharded"].cuts["model-2-of-3.safetensors"] = 1000
    with pytest.raises(LoadError, match=r"'shoal/sharded' broke off .*start again"):
        fetch("shoal/sharded")
    hub.repos["shoal/sharded"].cuts.clear()
    hub.seen.clear()
    folder = fetch("shoal/sharded")
    assert sorted(held(folder)) == sorted(
        hub.repos["shoal/sharded"].files.keys() - {"model.fp16.safetensors"}
    )
    fetched = [line for line in hub.seen if line.startswith("GET") and "/resolve/" in line]
    assert "model-2-of-3" in "".join(fetched)
    assert len(fetched) < 5, "files that are whole are not fetched again"


def test_space_is_looked_at_before(hub: FakeHub, monkeypatch: Any) -> None:
    hub.repos["shoal/open"].sizes["model.safetensors"] = 1 << 60
    words = r"'shoal/open' needs 1,152,921,504\.61 GB more on disk, and .*/cache has .* GB free"
    with pytest.raises(LoadError, match=words):
        find_model("shoal/open")
    assert not any("model.safetensors" in line for line in hub.seen), "nothing was fetched"


def test_a_disk_that_fills_up(hub: FakeHub, monkeypatch: Any) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("huggingface_hub.file_download.http_get", full)
    with pytest.raises(LoadError, match=r"disk is full.*--download-dir or HF_HOME"):
        find_model("shoal/open")


ASK = """
import json, os, sys
from shoal.engine.errors import LoadError
from shoal.engine.model.hub import fetch
sys.stdin.readline()
try:
    print(fetch(sys.argv[1]))
except LoadError as error:
    print("refused:", error)
assert "torch" not in sys.modules
"""


def ask(model: str, address: str, home: Path, **variables: str) -> subprocess.Popen[str]:
    """A process that asks for a model as soon as it is sent a line."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": address,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "0",
        "HF_TOKEN": "",
        **variables,
    }
    return subprocess.Popen(
        [sys.executable, "-c", ASK, model],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_processes_that_ask_at_once_download_once(tmp_path: Path) -> None:
    with fake_hub(**repos()) as hub:
        asking = [ask("shoal/sharded", hub.address, tmp_path) for _ in range(4)]
        answers = [process.communicate("\n") for process in asking]
        found = {out for out, _ in answers}
        assert len(found) == 1, answers
        assert Path(found.pop().strip()).is_relative_to(tmp_path)
        for name in SHARDS:
            path = f"/shoal/sharded/resolve/{hub.repos['shoal/sharded'].commit}/{name}"
            assert hub.seen[f"GET {path}"] == 1
        asked = hub.seen.total()
        offline = ask("shoal/sharded", hub.address, tmp_path, HF_HUB_OFFLINE="1")
        assert "/snapshots/" in offline.communicate("\n")[0]
        assert hub.seen.total() == asked
        private = ask("shoal/private", hub.address, tmp_path, HF_TOKEN=GOOD_TOKEN)
        assert "/snapshots/" in private.communicate("\n")[0]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(place)], capture_output=True
    )
    if made.returncode:
        pytest.skip("mounting a small file system needs root")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.filterwarnings("ignore:Not enough free disk space")
@pytest.mark.parametrize("told", [True, False])
def test_a_disk_that_is_too_small(hub: FakeHub, small_disk: Path, told: bool) -> None:
    big = Repo({"config.json": CONFIG, "model.safetensors": bytes(3 << 20)}, tells_sizes=told)
    hub.repos["shoal/big"] = big
    words = "needs 0.00 GB more on disk, and .* has 0.00 GB free" if told else "the disk is full"
    with pytest.raises(LoadError, match=words):
        fetch("shoal/big", download_dir=str(small_disk))
