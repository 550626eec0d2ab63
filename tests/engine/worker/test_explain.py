"""What is said of where ops run is what a rank does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from shoal.engine.config import EngineConfig
from shoal.engine.worker import explain as module
from shoal.engine.worker.device import Device
from shoal.engine.worker.explain import Explanation, Part, explain
from shoal.engine.worker.graphs import Plain, Taped
from shoal.engine.worker.worker import Worker
from shoal.kernels import ops
from shoal.kernels.cpu import backend, bindings
from transformers import FalconConfig, GPT2Config, Qwen3Config

PAGED = {"store_kv", "plan_attention", "paged_attention"}
INDEXING = (
    "sampling",
    "copies of rows",
    "torch",
    "plain indexing, for rows that ask",
)


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """Qwen3's shape with heads of 272, which no native page holds."""
    return saved(tmp_path, head_dim=272)


def saved(folder: Path, **values: Any) -> Path:
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "vocab_size": 331}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
    shape = Qwen3Config(**{**sizes, **heads, **values}, architectures=["Qwen3ForCausalLM"])
    shape.save_pretrained(folder)
    return folder


def config(model: Path, **values: Any) -> EngineConfig:
    return EngineConfig(model=str(model), device="cpu", **values)


def native(found: Explanation) -> set[str]:
    return {p.op for p in found.parts if p.runs == f"native {bindings.instructions()}"}


def forward(config: EngineConfig) -> Any:
    """How a rank that really started computes."""
    worker = Worker()
    worker.start(replace(config, threads=1, load_format="dummy", num_gpu_blocks_override=20))
    assert worker._runner is not None
    return worker._runner._forward


def test_the_bundled_model_is_native_in_every_op(tiny_model: Path) -> None:
    found = explain(config(tiny_model))
    *parts, indexing = found.parts
    assert {p.why for p in parts} == {bindings.left_out() or ""}
    assert all(p.runs.startswith("native ") for p in parts)
    assert (indexing.part, indexing.op, indexing.runs, indexing.why) == INDEXING
    assert found.facts["steps"].startswith("recorded once")
    assert found.facts["ranks"] == "one"
    layers = {p.layers for p in found.parts if ".layers." in p.part}
    assert layers == {6}
    assert (
        Part(
            part="model.layers.*.mlp.gate_up",
            op="linear + silu_mul",
            runs=f"native {bindings.instructions()}",
            layers=6,
        )
        in found.parts
    )


def test_it_names_the_lines_of_the_tape_that_a_rank_replays(odd: Path) -> None:
    head = ("logits", "greatest_logit")
    found = [p for p in explain(config(odd)).parts if p.part != "sampling" and p.op not in head]
    taped = forward(config(odd))
    assert isinstance(taped, Taped)
    lines = [" + ".join(filter(None, module._op(line))) for line in taped.tape.lines]
    assert list(dict.fromkeys(lines)) == list(dict.fromkeys(p.op for p in found))
    torchs = {line.name for line in taped.tape.lines if line.kind is None}
    assert torchs == {p.op for p in found if p.runs == "torch"} == PAGED


def test_an_odd_head_size_falls_back_op_by_op(odd: Path) -> None:
    found = explain(config(odd, dtype="bfloat16"))
    why = "native heads are of at most 256, and these are of 272"
    assert {p.op for p in found.parts if p.why == why} == PAGED
    assert found.facts["attention"] == f"torch ({why})"
    assert {"embed", "rope", "rms_norm", "linear + add", "logits"} <= native(found)
    assert {p.layers for p in found.parts if p.op == "store_kv"} == {3}


def test_blocks_that_native_pages_do_not_come_in(tmp_path: Path) -> None:
    found = explain(config(saved(tmp_path), block_size=8))
    reasons = {p.why for p in found.parts if p.op == "paged_attention"}
    assert reasons == {"native blocks are 16 or a multiple of 32 tokens, and these are of 8"}


def test_float16_and_eager_steps_run_op_by_op(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    half = explain(config(folder, dtype="float16"))
    assert half.facts["steps"] == "op by op: native ops are for float32 and bfloat16"
    model = [p for p in half.parts if p.part != "sampling"]
    assert {p.runs for p in model} == {"torch"}
    assert {p.why for p in model} == {"native ops are for float32 and bfloat16"}
    assert isinstance(forward(config(folder, dtype="float16")), Plain)
    eager = explain(config(folder, enforce_eager=True))
    assert eager.facts["steps"] == "op by op: enforce_eager"
    assert {"linear", "add_rms_norm"} <= native(eager)


def test_without_the_library_it_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "absence", lambda: "they were not built: make them")
    monkeypatch.setattr(bindings, "loaded", lambda: None)
    found = explain(config(saved(tmp_path)))
    why = "there are no native ops: they were not built: make them"
    assert found.facts["steps"] == f"op by op: {why}"
    assert {(p.runs, p.why) for p in found.parts[:-1]} == {("torch", why)}


def test_with_less_than_the_best_instructions_it_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bindings, "left_out", lambda: "amx was left out")
    found = explain(config(saved(tmp_path)))
    assert {p.why for p in found.parts if p.op in native(found)} == {"amx was left out"}
    assert found.facts["attention"].endswith("(amx was left out)")
    assert "amx was left out" not in {p.why for p in found.parts if p.runs == "torch"}


def test_a_model_in_transformers_code_has_native_attention(tmp_path: Path) -> None:
    found = explain(config(saved(tmp_path), model_impl="transformers"))
    assert found.facts["steps"] == "op by op: transformers' code computes them"
    (rest,) = (p for p in found.parts if p.part == "all but attention")
    assert (rest.runs, rest.why, rest.layers) == ("torch", "model_impl is transformers", 3)
    assert {"store_kv", "paged_attention"} <= native(found)


def test_what_adds_up_over_ranks(tmp_path: Path) -> None:
    found = explain(config(saved(tmp_path), tensor_parallel_size=2, pipeline_parallel_size=3))
    near = [p for p in found.parts if p.op == "all_reduce on a node"]
    far = [p for p in found.parts if p.op == "all_reduce across nodes"]
    assert {p.runs for p in near} == {"shared memory, inside the step"}
    assert {p.runs for p in far} == {"gloo, which cuts the step in two"}
    assert [p.layers for p in near] == [p.layers for p in far] == [0, 3, 3]
    sums = "sums by shared memory on a node, gloo across nodes"
    assert found.facts["ranks"] == f"2 share each layer, {sums}; 3 stages"
    eager = explain(config(tmp_path, tensor_parallel_size=2, enforce_eager=True))
    assert {p.runs for p in eager.parts if p.op.startswith("all_reduce")} == {
        "shared memory",
        "gloo",
    }


def test_gpt2_adds_up_over_ranks_once_before_its_layers(tmp_path: Path) -> None:
    shape = GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=331)
    shape.architectures = ["GPT2LMHeadModel"]
    shape.save_pretrained(tmp_path)
    found = explain(config(tmp_path, tensor_parallel_size=2))
    assert [(p.part, p.layers) for p in found.parts if p.op == "all_reduce on a node"] == [
        ("transformer.wte", 0),
        ("transformer.h.*.attn.c_proj", 2),
        ("transformer.h.*.mlp.c_proj", 2),
    ]


def test_the_head_of_a_greedy_step(tmp_path: Path) -> None:
    """Where a rank has the whole table, its greatest logit is found without writing the others."""
    ops_of_head = {p.op for p in explain(config(saved(tmp_path))).parts if p.part == "lm_head"}
    assert ops_of_head == {"logits", "greatest_logit"} <= native(explain(config(tmp_path)))
    shared = explain(config(tmp_path, tensor_parallel_size=2))
    assert {p.op for p in shared.parts if p.part == "lm_head"} == {"logits"}
    half = explain(config(tmp_path, dtype="float16"))
    assert {p.op for p in half.parts if p.part == "lm_head"} == {"logits"}


def test_another_shape_of_model_is_explained_too(tmp_path: Path) -> None:
    shape = FalconConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=331, alibi=True
    )
    shape.architectures = ["FalconForCausalLM"]
    shape.save_pretrained(tmp_path)
    assert {"linear + gelu", "layer_norm", "paged_attention"} <= native(explain(config(tmp_path)))


@pytest.mark.parametrize(
    ("attention", "exact"),
    [("triton", False), ("triton", True), ("FLASH_ATTN", False), ("torch", False)],
)
def test_on_a_gpu_it_names_the_backend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attention: str, exact: bool
) -> None:
    pytest.importorskip("triton")
    device = Device(torch.device("cuda", 0), ops.Choice(attention, exact))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(module, "pick", lambda name: device)
    monkeypatch.setattr(module, "choose_kernels", lambda *_: (device, "first for Hopper"))
    found = explain(config(saved(tmp_path), dtype="bfloat16"))
    runs = {p.op: (p.runs, p.why) for p in found.parts}
    assert runs["paged_attention"][0] == attention
    products = ("triton", "") if exact else ("torch", "cuBLAS")
    assert runs["linear"] == runs["logits"] == products
    assert runs["silu_mul"] == runs["add_rms_norm"] == ("triton", "")
    assert found.facts["attention"] == f"{attention} (first for Hopper)"
    graphs = "decode in CUDA graphs, the rest op by op"
    assert found.facts["steps"] == (
        "op by op: torch plans on the host" if attention == "torch" else graphs
    )
