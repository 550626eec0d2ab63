"""Which kernels a device computes with, and what it refuses before a model is loaded."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from shoal.engine.config import EngineConfig
from shoal.engine.errors import ConfigError
from shoal.engine.plan import CacheSpec
from shoal.engine.worker import device as device_module
from shoal.engine.worker import worker as worker_module
from shoal.engine.worker.cache import allocate
from shoal.engine.worker.device import Device
from shoal.engine.worker.rehearsal import rehearsal
from shoal.engine.worker.worker import forecast
from shoal.kernels import ops
from shoal.kernels.gpu.choice import Gpu
from shoal.kernels.gpu.room import Room, num_splits, room

CPU, CUDA = Device(torch.device("cpu")), Device(torch.device("cuda", 0))


@pytest.fixture
def h200(monkeypatch):
    monkeypatch.setattr(device_module, "gpu", lambda place: Gpu("NVIDIA H200", (9, 0)))


def test_a_cpu_takes_no_gpu_kernels():
    assert CPU.choosing("auto", True, torch.float32, (64,), 32) == (CPU, "")
    assert CPU.choosing("TORCH_SDPA", False, torch.float32, (64,), 32) == (CPU, "")
    with pytest.raises(ConfigError, match="FLASH_ATTN needs a CUDA device") as caught:
        CPU.choosing("FLASH_ATTN", False, torch.float32, (64,), 32)
    assert caught.value.key == "attention_backend"


def test_a_cpu_without_native_ops_says_why(monkeypatch, caplog):
    monkeypatch.setattr(device_module, "absence", lambda: "they were not built: make them")
    assert CPU.pool(2) is None
    assert "torch's ops compute" in caplog.text and "they were not built: make them" in caplog.text
    caplog.clear()
    assert CUDA.pool(1) is None and not caplog.text


def test_a_cpu_whose_best_instructions_were_left_out_says_so(monkeypatch, caplog):
    monkeypatch.setattr(device_module, "left_out", lambda: "amx was left out")
    pool = CPU.pool(1)
    assert pool is not None and "slower than they could" in caplog.text
    assert "amx was left out" in caplog.text
    pool.close()


def test_a_gpu_computes_by_the_table(h200):
    chosen, why = CUDA.choosing("TRITON_ATTN", False, torch.bfloat16, (128,), 16)
    assert chosen.choice == ops.Choice("triton", False) and why == "asked for"
    assert not chosen.adds_in_order
    chosen, why = CUDA.choosing("auto", True, torch.bfloat16, (128,), 16)
    assert chosen.choice == ops.Choice("triton", True) and why == "deterministic"
    assert chosen.adds_in_order, "ranks add in their order too"
    with pytest.raises(ConfigError, match=r"attention_backend=FLASHINFER.*heads"):
        CUDA.choosing("FLASHINFER", False, torch.bfloat16, (80,), 16)


def test_a_cache_on_a_cpu_begins_at_a_large_page() -> None:
    spec = CacheSpec(2, 16)
    for kind in (torch.float32, torch.bfloat16):
        cache = allocate([spec, spec], (spec,), 5, 32, kind, Device(torch.device("cpu")))
        assert [tuple(layer.shape) for layer in cache.layers] == [(2, 5, 32, 2, 16)] * 2
        assert all(layer.data_ptr() % (2 << 20) == 0 for layer in cache.layers)
        assert {layer.dtype for layer in cache.layers} == {kind}


def test_a_backend_that_cannot_serve_is_refused_before_loading(tiny_model, monkeypatch):
    monkeypatch.setattr(worker_module, "load", lambda *_, **__: pytest.fail("it was loaded"))
    config = EngineConfig(model=str(tiny_model), device="cpu", attention_backend="triton")
    with pytest.raises(ConfigError, match="needs a CUDA device"):
        worker_module.Worker().start(config)


def test_deterministic_is_for_native_models_on_a_gpu(tiny_model, monkeypatch, h200):
    config = EngineConfig(
        model=str(tiny_model), model_impl="transformers", deterministic=True, device="cpu"
    )
    assert forecast(config).attention == ""
    monkeypatch.setattr(worker_module, "pick", lambda name: CUDA)
    monkeypatch.setattr(worker_module, "choose_dtype", lambda *_: torch.bfloat16)
    with pytest.raises(ConfigError, match="transformers' code"):
        forecast(config)


@pytest.mark.parametrize("name", ["flash", "XFORMERS", ""])
def test_an_unknown_backend_is_refused(name):
    with pytest.raises(ConfigError, match="attention_backend must be one of auto, triton"):
        EngineConfig(attention_backend=name)


@pytest.mark.parametrize("attention", ["triton", "FLASH_ATTN"])
def test_a_cache_that_is_read_past_its_texts_begins_as_zeros(attention, monkeypatch):
    """A library multiplies what was never written by 0, and 0 times NaN is NaN."""

    def anything(self, *shape, dtype):
        return torch.full(shape, torch.nan, dtype=dtype)

    monkeypatch.setattr(Device, "large", anything)
    spec, device = CacheSpec(2, 16), Device(torch.device("cpu"), ops.Choice(attention))
    (layer,) = allocate([spec], (spec,), 5, 32, torch.bfloat16, device).layers
    assert bool(layer.isnan().any()) is (attention == "triton")
    assert attention == "triton" or not layer.any()


def test_a_rehearsal_of_exact_products_has_more_than_few_rows():
    from shoal.kernels.gpu.linear import FEW_ROWS

    exact = Device(torch.device("cuda", 0), ops.Choice("triton", True))
    assert CUDA.rehearsed_tokens == 2 and exact.rehearsed_tokens == FEW_ROWS + 1


def test_a_rehearsal_decodes_few_rows():
    plans = rehearsal(8, 1, 129, 16)
    assert [sum(row.num_tokens for row in plan.rows) for plan in plans] == [130, 1, 0]
    (row,) = plans[1].rows
    assert row.start == 129 and row.tokens


@pytest.mark.parametrize(
    ("attention", "right"),
    [
        ("triton", Room(of_split=16 * 130 * 4)),
        ("FLASH_ATTN", Room()),
        ("torch", Room()),
        ("FLASHINFER", Room(fixed=2 * (128 << 20))),
    ],
)
def test_attention_s_room_is_known_before_loading(monkeypatch, attention, right):
    """A workspace for each kind of layer; partial sums are shared by all."""
    h200 = SimpleNamespace(multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda place: h200)
    specs = [CacheSpec(4, 128), CacheSpec(4, 128, 4096)] * 3
    assert Device(torch.device("cuda", 0), ops.Choice(attention)).room(16, specs) == right
    assert CPU.room(16, specs) == Room()


def test_the_room_is_what_attention_takes():
    from shoal.kernels.gpu.attention import Plan

    q, (length, sequences) = torch.empty(5, 16, 128), (9000, 3)
    taken = sum(part.nbytes for part in Plan(1, length).room(sequences, q))
    of_split = room("triton", 16, [(4, 128)], 132).of_split
    assert taken == sequences * num_splits(length) * of_split
