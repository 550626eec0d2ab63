"""Checkpoints of the fallback: their names, tied tensors, experts, and what is missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from shoal.engine.errors import LoadError
from shoal.engine.model.load import load

from .families import EXPERTS, SMALL, Twin

FAMILIES = {
    "olmo2": Twin("Olmo2", SMALL),
    "olmo2-tied": Twin("Olmo2", {**SMALL, "tie_word_embeddings": True}),
    "mixtral": Twin("Mixtral", {**SMALL, **EXPERTS}),
    "opt": Twin("OPT", {**SMALL, "ffn_dim": 96, "word_embed_proj_dim": 64}),
}


@pytest.fixture
def saved(tmp_path: Path, random_model: Any) -> Any:
    """Saves a family's model and returns its folder."""

    def save(name: str) -> Path:
        random_model(FAMILIES[name].config, tmp_path)
        return tmp_path

    return save


def change(folder: Path, edit: Any) -> None:
    file = folder / "model.safetensors"
    save_file(edit(load_file(file)), file)


def weights(folder: Path, **options: Any) -> dict[str, torch.Tensor]:
    model: Any = load(folder, **options).model
    return {name: tensor.clone() for name, tensor in model.tensors().items()}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_tensor_arrives(name: str, saved: Any, random_model: Any) -> None:
    folder = saved(name)
    theirs = random_model(FAMILIES[name].config, folder)
    right = theirs.state_dict()
    found = weights(folder)
    assert found.keys() == right.keys()
    assert all(torch.equal(found[key], right[key]) for key in right)


@pytest.mark.parametrize("name", ["olmo2", "opt"])
def test_the_prefix_of_the_body_may_be_absent(name: str, saved: Any) -> None:
    folder = saved(name)
    right = weights(folder)
    change(folder, lambda all: {key.removeprefix("model."): t for key, t in all.items()})
    assert same(weights(folder), right)


@pytest.mark.parametrize("name", ["olmo2-tied", "mixtral"])
def test_pickled_weights(name: str, saved: Any) -> None:
    folder = saved(name)
    right = weights(folder)
    file = folder / "model.safetensors"
    torch.save(load_file(file), folder / "pytorch_model.bin")
    file.unlink()
    assert same(weights(folder), right)


def test_tied_tensors_under_any_of_their_names(saved: Any) -> None:
    folder = saved("olmo2-tied")
    model: Any = load(folder).model
    tensors = model.tensors()
    table, head = tensors["model.embed_tokens.weight"], tensors["lm_head.weight"]
    assert table is head
    right = weights(folder)
    name = "model.embed_tokens.weight"
    change(folder, lambda all: {**all, "lm_head.weight": all[name].clone()})
    assert same(weights(folder), right)
    change(folder, lambda all: {key: t for key, t in all.items() if key != name})
    assert same(weights(folder), right)


def test_what_is_missing_or_left_over_is_named(saved: Any) -> None:
    folder = saved("olmo2")
    whole = load_file(folder / "model.safetensors")
    gone = "model.layers.1.self_attn.k_norm.weight"
    change(folder, lambda all: {key: t for key, t in all.items() if key != gone})
    with pytest.raises(LoadError, match=f"lacks '{gone}'"):
        load(folder)
    change(folder, lambda _: {**whole, "model.layers.1.self_attn.bonus": torch.ones(3)})
    with pytest.raises(LoadError, match=r"holds 'model\.layers\.1\.self_attn\.bonus'"):
        load(folder)
    change(folder, lambda _: {**whole, gone: torch.ones(3)})
    with pytest.raises(LoadError, match="do not belong together"):
        load(folder)
    change(folder, lambda _: {**whole, "model.rotary_emb.inv_freq": torch.ones(8)})
    load(folder)


def test_a_missing_expert_is_named(saved: Any) -> None:
    folder = saved("mixtral")
    gone = "model.layers.0.block_sparse_moe.experts.1.w3.weight"
    whole = load_file(folder / "model.safetensors")
    assert gone in whole
    change(folder, lambda all: {key: t for key, t in all.items() if key != gone})
    with pytest.raises(LoadError, match=f"lacks '{gone}'"):
        load(folder)
    one_more = {gone.replace("1.w3", "4.w3"): whole[gone].clone()}
    change(folder, lambda _: {**whole, **one_more})
    with pytest.raises(LoadError, match=r"holds '.*experts\.4\.w3\.weight'.* are 4"):
        load(folder)


@pytest.mark.parametrize("name", ["mixtral", "olmo2-tied"])
def test_progress_counts_every_byte_once(name: str, saved: Any) -> None:
    seen: list[tuple[int, int]] = []
    model: Any = load(saved(name), progress=lambda done, all: seen.append((done, all))).model
    total = sum(weight.nbytes for weight in model.parameters())
    assert seen[-1] == (total, total)


def test_dummy_weights_and_digests(saved: Any) -> None:
    folder = saved("mixtral")
    one, other = (load(folder, load_format="dummy", seed=seed) for seed in (1, 2))
    assert one.digest != other.digest != load(folder).digest
    assert one.digest == load(folder, load_format="dummy", seed=1).digest
    model: Any = one.model
    for tensor in model.tensors().values():
        assert tensor.isfinite().all() and tensor.any()


def test_a_config_that_names_infinity(saved: Any) -> None:
    folder = saved("olmo2")
    path = folder / "config.json"
    limit = {"some_limit": [0.0, {"__float__": "Infinity"}]}
    path.write_text(json.dumps({**json.loads(path.read_text()), **limit}))
    load(folder)


def test_transformers_is_imported_only_for_the_fallback(tmp_path: Path, random_model: Any) -> None:
    random_model(Twin("Llama", SMALL).config, tmp_path / "llama")
    random_model(FAMILIES["olmo2"].config, tmp_path / "olmo2")
    code = (
        "import sys\n"
        "from shoal.engine.model.load import load\n"
        "load(sys.argv[1])\n"
        "assert 'transformers' not in sys.modules\n"
        "load(sys.argv[2])\n"
        "assert 'transformers' in sys.modules\n"
    )
    folders = [str(tmp_path / "llama"), str(tmp_path / "olmo2")]
    subprocess.run([sys.executable, "-c", code, *folders], check=True, env=os.environ)
