"""The benchmark of GPUs: its arithmetic by hand, its road on a small model, its refusal."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from shoal.engine.errors import ConfigError


def module(name: str) -> Any:
    return importlib.import_module(name)


ROOT = Path(__file__).parents[2]


def test_the_sizes_of_real_models() -> None:
    arithmetic = module("gpu_arithmetic")
    llama = arithmetic.read_model(ROOT / "benchmarks/shapes/llama-3.1-8b")
    weights = llama.layers * llama.layer_weights + 2 * llama.head_weights
    assert weights == pytest.approx(8.03e9, rel=0.001)  # both tables
    assert llama.kv_bytes == 128 * 1024
    qwen = arithmetic.read_model(ROOT / "benchmarks/shapes/qwen3-0.6b")
    assert qwen.tied and qwen.kv_bytes == 28 * 2 * 8 * 128 * 2
    weights = qwen.layers * qwen.layer_weights + qwen.head_weights
    assert weights == pytest.approx(0.596e9, rel=0.002)


def test_bytes_and_operations_by_hand() -> None:
    arithmetic = module("gpu_arithmetic")
    model = arithmetic.Model(
        layers=2, hidden=4, inner=6, heads=2, kv_heads=1, head_size=2, vocab=10, tied=False
    )
    assert model.layer_weights == 4 * 4 + 4 * 2 + 4 * 2 + 4 * 4 + 3 * 4 * 6  # q, k, v, o, mlp
    assert model.kv_bytes == 2 * 2 * 1 * 2 * 2
    weights = 2 * (2 * model.layer_weights + 40)
    assert arithmetic.decode_bytes(model, 3, 5) == weights + 3 * 6 * 16
    products = 2 * 3 * 4 * 2 * model.layer_weights
    scores = 4 * 3 * (1 + 2 + 3 + 4) * 2 * 2 * 2
    assert arithmetic.prefill_flops(model, 3, 4) == products + scores + 2 * 3 * 40
    slow = arithmetic.Chip("reads slowly", 1.0, 1e30)
    assert arithmetic.decode_floor_s(model, 3, 5, slow) == weights + 3 * 6 * 16
    weak = arithmetic.Chip("computes slowly", 1e30, 1.0)
    done = 2 * 3 * (2 * model.layer_weights + 40) + 4 * 3 * 5 * 2 * 2 * 2
    assert arithmetic.decode_floor_s(model, 3, 5, weak) == done


def test_an_h200_needs_3_4_ms_to_read_the_8b() -> None:
    arithmetic = module("gpu_arithmetic")
    llama = arithmetic.read_model(ROOT / "benchmarks/shapes/llama-3.1-8b")
    floor_s = arithmetic.decode_floor_s(llama, 1, 1024, arithmetic.CHIPS["H200"])
    assert floor_s == pytest.approx(3.15e-3, rel=0.02)


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("NVIDIA H200", "H200 SXM"),
        ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("NVIDIA A100-SXM4-80GB", "A100 SXM 80 GB"),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA A100-SXM4-40GB", None),
    ],
)
def test_a_chip_is_known_by_its_whole_name(
    name: str, known: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = module("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: name)
    if known:
        assert gpu.chip_here().name == known
        return
    with pytest.raises(SystemExit, match=f"{name} is not in .*A100-SXM4-80GB.*datasheet"):
        gpu.chip_here()


def test_both_sides_are_measured(tiny_model: Path) -> None:
    gpu, chips = module("gpu"), module("gpu_arithmetic").CHIPS
    options = argparse.Namespace(
        contexts=[16], batches=[2], steps=3, rounds=1, deterministic=False, chip=chips["H200"]
    )
    side = gpu.ours(str(tiny_model), options, "auto", num_gpu_blocks_override=64, device="cpu")
    for who, one in (("shoal", side), ("transformers", gpu.Theirs(tiny_model, "cpu"))):
        cell = gpu.measure(one, who, tiny_model, 2, 16, options)
        assert (cell.who, cell.batch, cell.context) == (who, 2, 16)
        assert cell.prefill_s > 0 and cell.prefill_share > 0
        gpu.show(cell)
        if who == "shoal":
            with pytest.raises(RuntimeError, match=r"9 tokens .* 8 is no multiple of its block"):
                gpu.measure(one, who, tiny_model, 2, 8, options)
        one.close()


def test_prompts_that_decode_together_are_in_the_cache(tiny_model: Path) -> None:
    gpu = module("gpu")
    options = argparse.Namespace(contexts=[48], batches=[3], steps=3, deterministic=False)
    side = gpu.ours(str(tiny_model), options, "auto", num_gpu_blocks_override=64, device="cpu")
    inputs = gpu.prompts(3, 49, 200)
    assert inputs == gpu.prompts(3, 49, 200) != gpu.prompts(3, 49, 200, seed=1)
    side.run_s(inputs, 4)
    assert side.read_anew() and side.uncached == 49
    side.run_s(inputs, 4)
    assert not side.read_anew() and side.uncached == 1
    side.close()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(SystemExit, match="torch sees none"):
        module("gpu").main()


class Side:
    """An engine that cannot hold batches of 64."""

    open = 0

    def __init__(self) -> None:
        Side.open += 1
        assert Side.open == 1, "the one before was not closed"

    def run_s(self, inputs: list[Any], tokens: int) -> float:
        if len(inputs) == 64:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 45 GiB")
        return float(tokens)

    def read_anew(self) -> bool:
        return False

    def gap_s(self) -> None:
        return None

    def close(self) -> None:
        Side.open -= 1


def test_a_cell_that_cannot_be_measured_takes_no_other_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu, chips = module("gpu"), module("gpu_arithmetic").CHIPS
    file = tmp_path / "found.json"
    given = "gpu.py --shapes qwen3-0.6b --batches 1,64,2 --contexts 8 --steps 2 --side-by-side"
    monkeypatch.setattr(sys, "argv", [*given.split(), "--json", str(file)])
    memory = SimpleNamespace(total_memory=80 << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: memory)
    monkeypatch.setattr(gpu, "chip_here", lambda: chips["H200"])
    monkeypatch.setattr(gpu, "backends", lambda *_: ["auto", "broken"])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    monkeypatch.setattr(gpu, "Theirs", lambda folder: Side())
    tried = []

    def ours(model: str, options: argparse.Namespace, backend: str) -> Side:
        tried.append(backend)
        if backend == "broken":
            raise ConfigError("it cannot be served", "attention_backend")
        return Side()

    monkeypatch.setattr(gpu, "ours", ours)
    seen: list[int] = []
    show = gpu.show

    def shown(cell: Any) -> None:
        seen.append(len(json.loads(file.read_text())["cells"]) if file.exists() else 0)
        show(cell)

    monkeypatch.setattr(gpu, "show", shown)
    assert gpu.main() == 0
    assert seen == list(range(9)), "what was found is written after each cell"
    cells = json.loads(file.read_text(), parse_constant=pytest.fail)["cells"]
    assert [(c["batch"], "reason" in c) for c in cells[:3]] == [(1, False), (64, True), (2, False)]
    assert cells[0]["gap_s"] is None and cells[0]["step_s"] == 1
    assert cells[1]["reason"].startswith("OutOfMemoryError: CUDA out of memory. Tried")
    assert all("it cannot be served" in c["reason"] for c in cells[3:6])
    assert tried == ["auto", "auto", "broken"] and Side.open == 0
    assert "| transformers | qwen3-0.6b | 64 | 8 | OutOfMemoryError" in capsys.readouterr().out


def test_a_cell_that_does_not_fit_says_so_and_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, chips = module("gpu"), module("gpu_arithmetic").CHIPS
    memory = SimpleNamespace(total_memory=80 << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: memory)
    folder = ROOT / "benchmarks/shapes/qwen3-0.6b"
    options = argparse.Namespace(steps=2, rounds=1, chip=chips["H200"])
    sizes = [(1, 1_000_000), (1, 8), (2, 1_000_000), (2, 8)]
    made = []

    def make() -> Side:
        made.append(Side())
        return made[-1]

    cells = list(gpu.measured("shoal", make, folder, sizes, options))
    assert [(cell.batch, cell.context) for cell in cells] == sizes
    assert [isinstance(cell, gpu.Missing) for cell in cells] == [True, False, True, False]
    assert cells[0].reason == "does not fit: 108.2 GiB of 68.0 GiB"
    assert len(made) == 1 and Side.open == 0


@pytest.mark.parametrize(
    ("deterministic", "there", "right"),
    [
        (False, (), ["auto"]),
        (True, (), ["auto", "triton"]),
        (False, ("flash_attn_interface",), ["auto", "triton", "FLASH_ATTN"]),
        (False, ("flashinfer",), ["auto", "FLASHINFER"]),
    ],
)
def test_nothing_is_measured_twice(
    deterministic: bool, there: tuple[str, ...], right: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = module("gpu")
    h200 = gpu.choice.Gpu("NVIDIA H200", (9, 0))
    monkeypatch.setattr(gpu.choice, "gpu", lambda device: h200)
    found = {"triton", *there}

    def missing(name: str) -> str | None:
        return None if name in found else f"{name} is not there"

    monkeypatch.setattr(gpu.choice, "missing", missing)
    choose = partial(gpu.choice.choose_attention, missing=missing)
    monkeypatch.setattr(gpu.choice, "choose_attention", choose)
    options = argparse.Namespace(side_by_side=True, deterministic=deterministic)
    model = module("gpu_arithmetic").read_model(ROOT / "benchmarks/shapes/qwen3-0.6b")
    assert gpu.backends(options, model) == right
