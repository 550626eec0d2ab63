"""From a checkpoint folder to weights in their places, and every way in which that fails."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from shoal.engine.errors import ConfigError, LoadError
from shoal.engine.model.config import model_facts, read_config
from shoal.engine.model.load import choose_dtype, load
from transformers import LlamaConfig, Qwen3Config

CONFIG = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 101,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: Any, random_model: Any) -> Path:
    folder: Path = tmp_path_factory.mktemp("llama")
    random_model(LlamaConfig(**CONFIG), folder)
    return folder


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "model"))


def weights(folder: Path, **options: Any) -> dict[str, torch.Tensor]:
    model: Any = load(folder, **options).model
    return dict(model.named_parameters())


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def edit(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_sharded_equals_single(folder: Path, tmp_path: Path, random_model: Any) -> None:
    random_model(LlamaConfig(**CONFIG), tmp_path / "sharded", max_shard_size="20KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    assert same(weights(folder), weights(tmp_path / "sharded"))


def test_progress_counts_every_byte(folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    loaded = weights(folder, progress=lambda done, total: seen.append((done, total)))
    total = sum(weight.nbytes for weight in loaded.values())
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_bfloat16_checkpoint_in_float32(folder: Path) -> None:
    path = folder / "model.safetensors"
    rounded = {name: w.bfloat16() for name, w in load_file(path).items()}
    save_file(rounded, path)
    edit(folder, dtype="bfloat16")
    model = load(folder)
    assert model.dtype == torch.float32
    head = dict(model.model.named_parameters())["lm_head.weight"]  # type: ignore[attr-defined]
    assert torch.equal(head, rounded["lm_head.weight"].float())
    assert weights(folder, dtype="bfloat16")["lm_head.weight"].dtype == torch.bfloat16


def test_auto_dtype_on_cpus(tmp_path: Path, caplog: Any) -> None:
    cpu = torch.device("cpu")
    large = {**CONFIG, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 4}
    for dtype in ("bfloat16", "float16"):
        LlamaConfig(**CONFIG, dtype=dtype, architectures=["LlamaForCausalLM"]).save_pretrained(
            tmp_path / "small"
        )
        LlamaConfig(**large, dtype=dtype, architectures=["LlamaForCausalLM"]).save_pretrained(
            tmp_path / "large"
        )
        with caplog.at_level("INFO"):
            assert choose_dtype("auto", read_config(tmp_path / "small"), cpu) == torch.float32
            assert choose_dtype("auto", read_config(tmp_path / "large"), cpu) == torch.bfloat16
    for served in ("float32", "bfloat16"):
        assert caplog.text.count(f"float16 weights are served in {served} on CPUs") == 1
    for _ in range(2):
        assert choose_dtype("half", read_config(tmp_path / "small"), cpu) == torch.float16
    assert caplog.text.count("float16 is computed in as asked, and slowly") == 1


@pytest.mark.parametrize(
    ("gpu", "hip", "capability", "brain"),
    [
        ("Tesla V100", None, (7, 0), torch.float16),
        ("Tesla T4", None, (7, 5), torch.float16),
        ("NVIDIA A100", None, (8, 0), torch.bfloat16),
        ("NVIDIA H200", None, (9, 0), torch.bfloat16),
        ("AMD Instinct MI300X", "7.0", (9, 4), torch.bfloat16),
    ],
)
def test_a_gpu_without_bfloat16_serves_float16(
    gpu: str,
    hip: str | None,
    capability: tuple[int, int],
    brain: torch.dtype,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: gpu)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    cuda = torch.device("cuda", 0)
    for own, served in (
        ("bfloat16", brain),
        ("float16", torch.float16),
        ("float32", torch.float32),
    ):
        LlamaConfig(**CONFIG, dtype=own, architectures=["LlamaForCausalLM"]).save_pretrained(
            tmp_path
        )
        config = read_config(tmp_path)
        assert choose_dtype("auto", config, cuda) == served
        for name in ("float16", "half", "float32"):
            assert choose_dtype(name, config, cuda) == getattr(torch, name)
        if brain is torch.bfloat16:
            assert choose_dtype("bfloat16", config, cuda) == brain
            continue
        said = rf"dtype=bfloat16.*{gpu}.*{capability[0]}\.{capability[1]}.*8\.0.*to float16"
        with pytest.raises(ConfigError, match=said) as caught:
            choose_dtype("bfloat16", config, cuda)
        assert caught.value.key == "dtype"


def test_cut_short(folder: Path) -> None:
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for length in (0, 5, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(LoadError, match=r"model\.safetensors is cut short.*fetch it again"):
            load(folder)
    path.write_bytes(b"\x08" + b"\0" * 7 + b"not json" + whole)
    with pytest.raises(LoadError, match="no safetensors file"):
        load(folder)


def test_missing_shard(folder: Path, tmp_path: Path, random_model: Any) -> None:
    random_model(LlamaConfig(**CONFIG), tmp_path / "sharded", max_shard_size="20KB")
    gone = sorted((tmp_path / "sharded").glob("*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(LoadError, match=f"{gone.name} is missing"):
        load(tmp_path / "sharded")


def change(folder: Path, **tensors: torch.Tensor | None) -> None:
    path = folder / "model.safetensors"
    merged = {**load_file(path), **{name.replace("__", "."): t for name, t in tensors.items()}}
    save_file({name: t.contiguous() for name, t in merged.items() if t is not None}, path)


def test_missing_tensor_is_named(folder: Path) -> None:
    change(folder, model__layers__1__self_attn__k_proj__weight=None)
    with pytest.raises(LoadError, match=r"lacks 'model\.layers\.1\.self_attn\.k_proj\.weight'"):
        load(folder)


def test_leftover_tensor_is_named(folder: Path) -> None:
    change(folder, model__layers__1__self_attn__k_proj__bias=torch.ones(16))
    with pytest.raises(LoadError, match=r"holds 'model\.layers\.1\.self_attn\.k_proj\.bias'"):
        load(folder)


def test_expected_leftovers_are_skipped(folder: Path) -> None:
    right = weights(folder)
    change(folder, model__layers__0__self_attn__rotary_emb__inv_freq=torch.ones(4))
    assert same(weights(folder), right)
    edit(folder, tie_word_embeddings=True)
    tied = weights(folder)
    assert "lm_head.weight" not in tied
    assert len(tied) == len(right) - 1


def test_a_checkpoint_without_the_head_lacks_the_first_word(folder: Path) -> None:
    right = weights(folder)
    path = folder / "model.safetensors"
    bare = {name.removeprefix("model."): tensor for name, tensor in load_file(path).items()}
    save_file(bare, path)
    assert "layers.0.mlp.up_proj.weight" in bare
    assert same(weights(folder), right)


def test_wrong_shape(folder: Path) -> None:
    edit(folder, vocab_size=102)
    with pytest.raises(LoadError, match=r"shape \[101, 32\].*\[102, 32\].*do not belong together"):
        load(folder)


def test_quantized_tensors_are_refused(folder: Path) -> None:
    change(folder, lm_head__weight=torch.ones(101, 32, dtype=torch.int8))
    with pytest.raises(LoadError, match=r"lm_head\.weight .*I8, and plain floats"):
        load(folder)
    edit(folder, quantization_config={"quant_method": "awq"})
    with pytest.raises(LoadError, match=r"quantized \(awq\), which is not built"):
        load(folder)


def test_unknown_architecture_lists_the_known(folder: Path) -> None:
    edit(folder, architectures=["Qwen3ForCasualLM"])
    with pytest.raises(
        LoadError, match=r"Qwen3ForCasualLM.*LlamaForCausalLM.*nearest.*Qwen3ForCausalLM"
    ):
        load(folder)
    edit(folder, architectures=None)
    with pytest.raises(LoadError, match="no 'architectures'"):
        load(folder)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"hidden_act": "gelu"}, r"hidden_act 'gelu' is not built.*silu.*model_impl"),
        ({"hidden_size": None}, "no 'hidden_size'"),
        ({"rope_parameters": {"rope_type": "mrope"}}, "rope of type 'mrope' is not known"),
        ({"rope_parameters": {"rope_type": "linear"}}, "type 'linear' needs 'factor'"),
        ({"rope_parameters": {"full_attention": {}}}, "rope that differs by layer"),
    ],
)
def test_configurations_that_cannot_be_kept(
    folder: Path, values: dict[str, Any], words: str
) -> None:
    edit(folder, **values)
    with pytest.raises(LoadError, match=words):
        load(folder)


def test_folders_that_hold_no_model(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(LoadError, match=r"holds no weights .*was the download complete"):
        load(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(LoadError, match=r"config\.json is not JSON"):
        load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(LoadError, match=r"has no config\.json"):
        load(folder)


def test_dummy_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    first = weights(folder, load_format="dummy", seed=3)
    assert same(first, weights(folder, load_format="dummy", seed=3))
    assert not same(first, weights(folder, load_format="dummy", seed=4))
    table = first["lm_head.weight"]
    assert len({tuple(row) for row in table.tolist()}) == len(table)
    assert 0.01 < table.std() < 0.03
    assert not torch.equal(table, first["model.embed_tokens.weight"])
    assert (first["model.norm.weight"] == 1).all()


def test_digest_follows_content(folder: Path, tmp_path: Path) -> None:
    def digest(where: Path, **options: Any) -> str:
        return load(where, **options).digest

    first = digest(folder)
    assert re.fullmatch("[0-9a-f]{32}", first)
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    assert digest(copy) == first
    assert digest(folder, dtype="bfloat16") != first
    assert digest(folder, max_len=64) == first
    edit(copy, rope_parameters={"rope_type": "dynamic", "factor": 2.0})
    stretched = [digest(copy, max_len=length) for length in (64, 128, 200)]
    assert stretched[0] == stretched[1] != stretched[2]
    (copy / "config.json").write_bytes((folder / "config.json").read_bytes())
    dummies = [digest(folder, load_format="dummy", seed=seed) for seed in (1, 1, 2)]
    assert dummies[0] == dummies[1] != dummies[2] and first not in dummies
    change(copy, lm_head__weight=load_file(copy / "model.safetensors")["lm_head.weight"] * 1.01)
    assert digest(copy) != first
    edit(folder, rms_norm_eps=1e-5)
    assert digest(folder) != first


PEAK = """
import resource, sys
import torch
from shoal.engine.model.load import load
from shoal.engine.model.mesh import Mesh, Stage
parts = {
    "all of it": {},
    "a half of each layer": {"mesh": Mesh(rank=1, size=2)},
    "a stage": {"stage": Stage(range(1), last=False)},
}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
model = load(sys.argv[1], dtype=sys.argv[2], **parts[sys.argv[3]])
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print((after - before) * 1024, sum(w.nbytes for w in model.model.parameters()))
"""


@pytest.mark.parametrize(
    ("dtype", "part", "share"),
    [
        ("bfloat16", "all of it", 1.0),
        ("float32", "all of it", 2.0),
        ("bfloat16", "a half of each layer", 0.5),
        ("bfloat16", "a stage", 0.45),
    ],
)
def test_peak_memory_is_the_weights_and_a_shard(
    tmp_path: Path, dtype: str, part: str, share: float
) -> None:
    from transformers import AutoModelForCausalLM

    config = Qwen3Config(
        **{**CONFIG, "hidden_size": 1024, "intermediate_size": 3072, "vocab_size": 40_000},
        head_dim=128,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path, max_shard_size="50MB")
    del model
    files = sorted(tmp_path.glob("*.safetensors"), key=lambda path: path.stat().st_size)
    assert sum(path.stat().st_size for path in files) > 150e6
    out = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path), dtype, part],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ,
    )
    grown, held = map(int, out.stdout.split())
    assert held == pytest.approx(share * sum(path.stat().st_size for path in files), rel=0.02)
    assert grown < held + files[-1].stat().st_size + 32e6


def test_facts(folder: Path) -> None:
    generation = {
        "temperature": 0.6,
        "top_p": 0.95,
        "top_k": 20,
        "max_new_tokens": 77,
        "eos_token_id": [2, 7],
        "do_sample": True,
    }
    (folder / "generation_config.json").write_text(json.dumps(generation))
    facts = model_facts(folder)
    assert facts.architecture == "LlamaForCausalLM"
    assert (facts.max_model_len, facts.vocab_size, facts.dtype) == (128, 101, "float32")
    assert facts.eos_token_ids == {2, 7}
    assert facts.sampling == {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "max_tokens": 77}
    plain = model_facts(folder, generation_config=False)
    assert plain.sampling == {} and plain.eos_token_ids == {2, 7}
    (folder / "generation_config.json").unlink()
    assert model_facts(folder).eos_token_ids == {2}


@pytest.mark.parametrize(
    ("rope", "length"),
    [
        ({"rope_type": "default"}, 128),
        ({"type": "linear", "factor": 2.5}, 320),
        ({"rope_type": "dynamic", "factor": 2.0}, 256),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}, 256),
        ({"rope_type": "yarn", "factor": 4.0}, 512),
        ({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 64}, 128),
    ],
)
def test_length_is_stretched_by_the_rope(folder: Path, rope: dict[str, Any], length: int) -> None:
    edit(folder, rope_parameters=None, rope_theta=500.0, rope_scaling=rope)
    assert model_facts(folder).max_model_len == length
    assert read_config(folder).rope["rope_theta"] == 500.0


def test_facts_need_no_torch(folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from shoal.engine.model.config import model_facts\n"
        "from shoal.engine.model.hub import find_model\n"
        "model_facts(find_model(sys.argv[1]))\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True, env=os.environ)
