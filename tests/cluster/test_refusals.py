"""What `shoal serve MODEL` prints, and how it ends, when a model cannot be had or read."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from shoal.cluster import cli
from shoal.cluster.exits import UNLOADED
from shoal.engine.errors import LoadError
from shoal.engine.llm import LLM


def edit(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def change(folder: Path, **tensors: torch.Tensor | None) -> None:
    path = folder / "model.safetensors"
    table = {**load_file(path), **tensors}
    save_file({name: tensor for name, tensor in table.items() if tensor is not None}, path)


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100_000])


def cut_bin(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    path = folder / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:100_000])


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("exit 1",)


def pickled(folder: Path) -> None:
    torch.save({"evil": Evil()}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def missing_shard(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-1-of-2.safetensors")
    place = {"lm_head.weight": "model-2-of-2.safetensors", "a": "model-1-of-2.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": place}))


def no_tokenizer(folder: Path) -> None:
    for path in folder.glob("*token*"):
        path.unlink()


def code_tokenizer(folder: Path) -> None:
    no_tokenizer(folder)
    (folder / "tokenization_own.py").write_text("raise SystemExit('code of the folder was run')")
    named = {
        "tokenizer_class": "Own",
        "auto_map": {"AutoTokenizer": ["tokenization_own.Own", None]},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(named))


def code_model(folder: Path) -> None:
    (folder / "modeling_own.py").write_text("raise SystemExit('code of the folder was run')")
    named = {"AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    edit(folder, architectures=["OwnForCausalLM"], model_type="own", auto_map=named)


NORM = "model.norm.weight"

CASES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config.json": (
        lambda f: (f / "config.json").unlink(),
        "has no config.json (it holds ",
    ),
    "config.json is no JSON": (
        lambda f: (f / "config.json").write_text("{"),
        "config.json is not JSON: ",
    ),
    "no weights": (
        lambda f: (f / "model.safetensors").unlink(),
        "holds no weights (model.safetensors or pytorch_model.bin), only ",
    ),
    "another format": (
        lambda f: (f / "model.safetensors").rename(f / "model.gguf"),
        "holds no model.safetensors or pytorch_model.bin, but model.gguf: a file for llama.cpp",
    ),
    "cut short": (cut, "model.safetensors is cut short: 100,000 of "),
    "bin cut short": (cut_bin, "pytorch_model.bin is cut short (100,000 bytes); fetch it again"),
    "pickled code": (
        pickled,
        "pytorch_model.bin holds pickled code (posix.system), which is never",
    ),
    "a shard missing": (missing_shard, "model-2-of-2.safetensors is missing; fetch"),
    "a tensor missing": (
        lambda f: change(f, **{NORM: None}),
        "the checkpoint lacks 'model.norm.weight', which the model needs",
    ),
    "a tensor left over": (
        lambda f: change(f, extra=torch.ones(2)),
        "the checkpoint holds 'extra', which the model has no place for",
    ),
    "a wrong shape": (
        lambda f: change(f, **{NORM: torch.ones(3)}),
        "has the shape [3], of which a piece of ",
    ),
    "an odd dtype": (
        lambda f: change(f, **{NORM: torch.ones(3, dtype=torch.int8)}),
        "is of type I8, and plain floats were expected",
    ),
    "an unknown architecture": (
        lambda f: edit(f, architectures=["NoSuchForCausalLM"], model_type="no_such"),
        "architecture 'NoSuchForCausalLM' is ",
    ),
    "an architecture of own code": (
        code_model,
        "is known only to code of its repository: modeling_own.py would have to run",
    ),
    "no tokenizer": (no_tokenizer, "no tokenizer in "),
    "a tokenizer cut short": (
        lambda f: (f / "tokenizer.json").write_text("{"),
        "tokenizer.json cannot be read: ",
    ),
    "a tokenizer of own code": (
        code_tokenizer,
        "is known only to code of its repository: tokenization_own.py would have to run, and "
        "trust_remote_code is off",
    ),
}


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    files = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    (tmp_path / "model").mkdir()
    for name in files:
        shutil.copy(tiny_model / name, tmp_path / "model" / name)
    return tmp_path / "model"


def port() -> str:
    """One that is free."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def serve(monkeypatch: Any, *words: str) -> object:
    """Run `shoal serve` here; its exit code."""
    monkeypatch.setattr(sys, "argv", ["shoal", "serve", *words, "--local", "--port", port()])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code


@pytest.mark.parametrize("case", CASES)
def test_one_clear_line(folder: Path, monkeypatch: Any, capsys: Any, case: str) -> None:
    spoil, words = CASES[case]
    spoil(folder)
    with pytest.raises(LoadError) as refused:
        LLM(str(folder), max_model_len=64, num_gpu_blocks_override=8)
    assert words in refused.value.message
    assert serve(monkeypatch, str(folder)) == UNLOADED
    told = capsys.readouterr().err
    assert f"error: {refused.value.message}\n" in told
    assert "Traceback" not in told


def test_a_folder_that_is_not_there(folder: Path, monkeypatch: Any, capsys: Any) -> None:
    assert serve(monkeypatch, str(folder.parent / "modle")) == UNLOADED
    assert f"did you mean '{folder}'?" in capsys.readouterr().err


def test_the_command_itself(folder: Path) -> None:
    """As a user starts it, through Ray's door: before Ray is started."""
    no_tokenizer(folder)
    command = [sys.executable, "-m", "shoal", "serve", str(folder), "--port", port()]
    ended = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    assert ended.returncode == UNLOADED
    assert ended.stderr.strip().splitlines()[-1].startswith(f"error: no tokenizer in {folder}")
    assert "Traceback" not in ended.stderr + ended.stdout
    assert "start Ray" not in ended.stderr + ended.stdout
