"""pytorch_model*.bin: the same weights as safetensors, and nothing in it is ever run."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from shoal.engine.errors import LoadError
from shoal.engine.model.load import load
from shoal.engine.model.weights import read_header
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

CONFIG = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 101,
    "max_position_embeddings": 128,
}

Save = Callable[[Any, Path], None]


def zipped(table: Any, path: Path) -> None:
    torch.save(table, path)


def old(table: Any, path: Path) -> None:
    """As torch older than 1.6 wrote it."""
    torch.save(table, path, _use_new_zipfile_serialization=False)


both = pytest.mark.parametrize("save", [zipped, old])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = LlamaForCausalLM(LlamaConfig(**CONFIG))
    model.save_pretrained(tmp_path)
    return tmp_path


def weights(folder: Path, **options: Any) -> dict[str, Tensor]:
    model: Any = load(folder, **options).model
    return dict(model.named_parameters())


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def convert(folder: Path, save: Save = zipped, **changes: Any) -> Path:
    """Write the weights as a `.bin` instead."""
    table = {**load_file(folder / "model.safetensors"), **changes}
    (folder / "model.safetensors").unlink()
    save(table, folder / "pytorch_model.bin")
    return folder / "pytorch_model.bin"


@both
def test_equals_safetensors(folder: Path, save: Save) -> None:
    right = load(folder)
    convert(folder, save)
    seen: list[tuple[int, int]] = []
    found = load(folder, progress=lambda done, total: seen.append((done, total)))
    left = dict(found.model.named_parameters())  # type: ignore[attr-defined]
    assert same(left, dict(right.model.named_parameters()))  # type: ignore[attr-defined]
    total = sum(weight.nbytes for weight in left.values())
    assert seen[-1] == (total, total)
    assert found.digest != right.digest
    assert found.digest == load(folder, load_format="pt").digest


@both
def test_sharded(folder: Path, save: Save) -> None:
    right = weights(folder)
    table = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(table)
    place = {name: f"pytorch_model-0000{i % 3 + 1}-of-00003.bin" for i, name in enumerate(names)}
    for file in set(place.values()):
        save({name: table[name] for name in names if place[name] == file}, folder / file)
    index = {"metadata": {}, "weight_map": place}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert same(weights(folder), right)
    (folder / "pytorch_model-00002-of-00003.bin").unlink()
    with pytest.raises(LoadError, match=r"pytorch_model-00002-of-00003\.bin is missing; fetch"):
        load(folder)
    (folder / "pytorch_model.bin.index.json").write_text("{")
    with pytest.raises(LoadError, match=r"index\.json is no index of weights"):
        load(folder)


def test_safetensors_go_first(folder: Path) -> None:
    right = weights(folder)
    table = load_file(folder / "model.safetensors")
    zipped({name: tensor + 1 for name, tensor in table.items()}, folder / "pytorch_model.bin")
    assert same(weights(folder), right)
    assert same(weights(folder, load_format="safetensors"), right)
    assert not same(weights(folder, load_format="pt"), right)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(LoadError, match=r"no pytorch_model\.bin, but model\.safetensors: which"):
        load(folder, load_format="pt")


@both
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precision_inside(folder: Path, save: Save, dtype: torch.dtype) -> None:
    table = {n: t.to(dtype) for n, t in load_file(folder / "model.safetensors").items()}
    convert(folder, save, **table)
    found = weights(folder, dtype="float32")
    assert torch.equal(found["lm_head.weight"], table["lm_head.weight"].float())


@both
def test_tied_and_shared_storage(folder: Path, save: Save) -> None:
    """One storage under two names, and rows of one storage under several."""
    table = load_file(folder / "model.safetensors")
    del table["lm_head.weight"]
    save_file(table, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    right = weights(folder)
    norms = [name for name in table if name.endswith("layernorm.weight")]
    storage = torch.stack([table[name] for name in norms])
    shared = {name: storage[i] for i, name in enumerate(norms)}
    tied = {"lm_head.weight": table["model.embed_tokens.weight"]}
    tied |= {"model.embed_tokens.weight": tied["lm_head.weight"]}
    convert(folder, save, **shared, **tied)
    assert same(weights(folder), right)


class Evil:
    """Unpickling it makes a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.trace}",)


@both
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_pickled_code_is_refused(folder: Path, save: Save) -> None:
    trace = folder / "was-run"
    path = convert(folder, save, evil=Evil(trace))
    with pytest.raises(LoadError, match=r"holds pickled code \(posix\.system\).*never run"):
        load(folder)
    path.write_bytes(pickle.dumps(Evil(trace)))
    with pytest.raises(LoadError, match=r"pickled code \(posix\.system\)|no file of torch"):
        load(folder)
    assert not trace.exists()


@both
def test_a_whole_module_is_refused(folder: Path, save: Save) -> None:
    (folder / "model.safetensors").unlink()
    save(torch.nn.Linear(2, 2), folder / "pytorch_model.bin")
    with pytest.raises(LoadError, match=r"holds pickled code \(torch\.nn\.modules\.linear\.Linear"):
        load(folder)


@both
def test_cut_short(folder: Path, save: Save) -> None:
    path = convert(folder, save)
    whole = path.read_bytes()
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(LoadError, match=r"pytorch_model\.bin is cut short.*fetch it again"):
            load(folder)


@both
def test_other_content(folder: Path, save: Save) -> None:
    path = folder / "pytorch_model.bin"
    (folder / "model.safetensors").rename(folder / "kept")
    for content in ([torch.ones(2)], {"model": {"lm_head.weight": torch.ones(2)}}, {"epoch": 3}):
        save(content, path)
        with pytest.raises(LoadError, match="is no table of tensors by name"):
            load(folder)
    path.write_text("<html>404</html>")
    with pytest.raises(LoadError, match=r"cut short or no file of torch"):
        load(folder)


@both
def test_tensors_that_are_no_floats(folder: Path, save: Save) -> None:
    path = convert(folder, save, **{"lm_head.weight": torch.ones(101, 32, dtype=torch.int8)})
    with pytest.raises(LoadError, match=r"lm_head\.weight .*type int8, and plain floats"):
        load(folder)
    table = torch.load(path)
    table["lm_head.weight"] = torch.eye(101, 32).to_sparse()
    save(table, path)
    with pytest.raises(LoadError, match=r"lm_head\.weight .*type sparse"):
        load(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_a_pointer_of_git_lfs(tmp_path: Path, name: str) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    (tmp_path / name).write_text(pointer)
    with pytest.raises(LoadError, match=r"is a pointer of git-lfs.*git lfs pull"):
        read_header(tmp_path / name)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["model-q4.gguf"], r"but model-q4\.gguf: a file for llama\.cpp.*gguf_file"),
        (["original/consolidated.00.pth"], "layout of the model's maker.*convert_"),
        (["consolidated.safetensors", "params.json"], "layout of the model's maker"),
        (["tf_model.h5"], r"TensorFlow or Flax.*transformers 4"),
        (["flax_model.msgpack"], r"TensorFlow or Flax"),
        (["adapter_model.safetensors"], "an adapter, not a model"),
        (["training_args.bin"], r"training_args\.bin: which is not read"),
        ([], r"holds no weights \(model\.safetensors or pytorch_model\.bin\), only config\.json"),
    ],
)
def test_other_formats(folder: Path, names: Iterable[str], words: str) -> None:
    (folder / "model.safetensors").unlink()
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")
    with pytest.raises(LoadError, match=words):
        load(folder)


PEAK = """
import resource, sys
import torch
from shoal.engine.model.load import load
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
model = load(sys.argv[1], dtype="float32")
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print((after - before) * 1024, sum(w.nbytes for w in model.model.parameters()))
"""


@both
def test_peak_memory_is_the_weights_and_a_shard(tmp_path: Path, save: Save) -> None:
    sizes = {"hidden_size": 512, "intermediate_size": 2048, "vocab_size": 20_000}
    config = LlamaConfig(**{**CONFIG, **sizes, "architectures": ["LlamaForCausalLM"]})
    config.save_pretrained(tmp_path)
    table = LlamaForCausalLM(config).to(torch.bfloat16).state_dict()
    shards = [list(table)[i::3] for i in range(3)]
    for i, names in enumerate(shards):
        save({name: table[name] for name in names}, tmp_path / f"pytorch_model-{i}.bin")
    place = {name: f"pytorch_model-{i}.bin" for i, names in enumerate(shards) for name in names}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": place}))
    out = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ,
    )
    grown, held = map(int, out.stdout.split())
    largest = max(path.stat().st_size for path in tmp_path.glob("*.bin"))
    assert grown < held + largest + 16e6 < held + sum(t.nbytes for t in table.values())
