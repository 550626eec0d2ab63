"""The benchmark of GPUs: its arithmetic by hand, its road on a small model, its refusal."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch


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


def test_both_sides_are_measured(tiny_model: Path) -> None:
    gpu, chips = module("gpu"), module("gpu_arithmetic").CHIPS
    options = argparse.Namespace(
        contexts=[8], batches=[2], steps=3, rounds=1, deterministic=False, chip=chips["H200"]
    )
    side = gpu.ours(str(tiny_model), options, "auto", num_gpu_blocks_override=64, device="cpu")
    for who, one in (("shoal", side), ("transformers", gpu.Theirs(tiny_model, "cpu"))):
        cell = gpu.measure(one, who, tiny_model, 2, 8, options)
        assert (cell.who, cell.batch, cell.context) == (who, 2, 8)
        assert cell.prefill_s > 0 and cell.prefill_share > 0
        gpu.show(cell)
        one.close()


def test_prompts_that_decode_together_are_in_the_cache(tiny_model: Path) -> None:
    gpu = module("gpu")
    options = argparse.Namespace(contexts=[48], batches=[3], steps=3, deterministic=False)
    side = gpu.ours(str(tiny_model), options, "auto", num_gpu_blocks_override=64, device="cpu")
    inputs = gpu.prompts(3, 48, 200)
    assert inputs == gpu.prompts(3, 48, 200) != gpu.prompts(3, 48, 200, seed=1)
    side.run_s(inputs, 4)
    assert side.read_anew() and side.uncached == 48
    side.run_s(inputs, 4)
    assert not side.read_anew() and side.uncached == 16
    side.close()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(SystemExit, match="torch sees none"):
        module("gpu").main()
