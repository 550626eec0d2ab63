"""Which attention serves what, from Volta to Blackwell; no GPU is asked."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from shoal.kernels.gpu.choice import LIBRARIES, Gpu, Model, choose_attention, dtype_gap, missing
from shoal.kernels.gpu.family import Family, family_of

GPUS = {
    "V100": Gpu("Tesla V100", (7, 0)),
    "T4": Gpu("Tesla T4", (7, 5)),
    "A100": Gpu("NVIDIA A100", (8, 0)),
    "L4": Gpu("NVIDIA L4", (8, 9)),
    "H200": Gpu("NVIDIA H200", (9, 0)),
    "B200": Gpu("NVIDIA B200", (10, 0)),
    "5090": Gpu("GeForce RTX 5090", (12, 0)),
    "MI300X": Gpu("AMD Instinct MI300X", (9, 4), hip=True),
}
HALF = Model(torch.float16, (128,), 16)
BRAIN = Model(torch.bfloat16, (128,), 16)


def but(*there: str) -> Callable[[str], str | None]:
    """What `missing` says where these modules alone are installed."""
    return lambda name: None if name in there else f"{name} is missing: {LIBRARIES[name].source}"


def choose(gpu: str, model: Model, asked: str = "auto", exact: bool = False, *modules: str) -> str:
    backend, why = choose_attention(
        asked, GPUS[gpu], model, exact=exact, missing=but("triton", *modules)
    )
    assert why
    return backend


@pytest.mark.parametrize("gpu", GPUS)
def test_triton_where_nothing_else_is_installed(gpu: str) -> None:
    assert choose(gpu, HALF) == choose(gpu, HALF, "triton") == "triton"


def test_what_is_installed_is_taken_where_it_serves() -> None:
    both = ("flash_attn", "flash_attn_interface", "flashinfer")
    assert choose("H200", BRAIN, "auto", False, "flash_attn_interface") == "FLASH_ATTN"
    assert choose("A100", BRAIN, "auto", False, *both) == "triton"  # pages of 16
    paged = BRAIN._replace(block_size=256)
    assert choose("A100", paged, "auto", False, *both) == "FLASH_ATTN"
    assert choose("B200", paged, "auto", False, *both) == "triton"
    assert choose("H200", paged, "auto", False, *both) == "FLASH_ATTN"  # the second
    assert choose("H200", paged, "auto", False, "flash_attn_interface") == "triton"
    assert choose("T4", HALF, "FLASHINFER", False, *both) == "FLASHINFER"
    assert choose("H200", BRAIN._replace(dtype=torch.float32), "auto", False, *both) == "triton"


@pytest.mark.parametrize(
    ("gpu", "model", "asked", "modules", "said"),
    [
        ("T4", HALF, "FLASH_ATTN", ("flash_attn",), "Ampere.*Tesla T4"),
        ("MI300X", HALF, "FLASHINFER", ("flashinfer",), "NVIDIA.*MI300X"),
        ("A100", BRAIN, "FLASH_ATTN", ("flash_attn",), "set block_size to 256"),
        ("A100", BRAIN, "FLASH_ATTN", (), "pip install flash-attn"),
        (
            "H200",
            BRAIN._replace(block_size=64),
            "FLASH_ATTN",
            ("flash_attn_interface",),
            "behind a text's end.*of 64: set block_size to 16",
        ),
        ("H200", BRAIN, "FLASHINFER", (), "pip install flashinfer-python"),
        ("V100", HALF, "FLASHINFER", ("flashinfer",), "Turing"),
        ("H200", BRAIN._replace(head_sizes=(80,)), "FLASHINFER", ("flashinfer",), "of .80,"),
        ("H200", BRAIN._replace(head_sizes=(512,)), "triton", (), "at most 256.*512"),
        ("H200", BRAIN._replace(dtype=torch.float32), "FLASH_ATTN", (), "not in float32"),
    ],
)
def test_what_cannot_be_served_is_refused(
    gpu: str, model: Model, asked: str, modules: tuple[str, ...], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        choose(gpu, model, asked, False, *modules)


def test_large_heads_are_left_to_torch_and_the_reason_is_said() -> None:
    large = BRAIN._replace(head_sizes=(64, 512))
    backend, why = choose_attention("auto", GPUS["B200"], large, missing=but("triton"))
    assert backend == "torch" and "at most 256, and the model's of 512" in why


def test_deterministic_is_tritons_alone() -> None:
    assert choose("H200", BRAIN, "auto", True, "flash_attn_interface") == "triton"
    with pytest.raises(ValueError, match="promises no order"):
        choose("H200", BRAIN, "FLASH_ATTN", True, "flash_attn_interface")
    with pytest.raises(ValueError, match="at most 256"):
        choose("H200", BRAIN._replace(head_sizes=(512,)), "auto", True)


def test_a_gpu_before_volta_is_refused() -> None:
    with pytest.raises(ValueError, match=r"6\.1; a GPU of 7\.0"):
        choose_attention("auto", Gpu("GTX 1080", (6, 1)), HALF)


@pytest.mark.parametrize("gpu", GPUS)
def test_bfloat16_is_of_ampere_and_later(gpu: str) -> None:
    gap = dtype_gap(GPUS[gpu], torch.bfloat16)
    assert (gap is not None) is (gpu in ("V100", "T4"))
    assert gap is None or (f"{GPUS[gpu].name} has" in gap and "set dtype to float16" in gap)
    assert dtype_gap(GPUS[gpu], torch.float16) is dtype_gap(GPUS[gpu], torch.float32) is None


def test_families_by_capability() -> None:
    assert family_of((8, 0)) is Family.AMPERE
    assert family_of((9, 0)) is family_of((10, 0)) is Family.HOPPER
    assert {family_of(c) for c in ((8, 6), (8, 9), (12, 0))} == {Family.SAFE}
    assert family_of((7, 0)) is family_of((7, 5)) is Family.OLD


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of modules, before all others; none of LIBRARIES is loaded from elsewhere."""
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("flash_attn", "flash_attn_interface"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    missing.cache_clear()
    yield tmp_path
    missing.cache_clear()
    for name in ("flash_attn", "flash_attn_interface"):
        sys.modules.pop(name, None)


def test_a_library_of_another_torch_is_passed_over_and_the_reason_said(modules: Path) -> None:
    broken = "raise ImportError('flash_attn_3_cuda.so: undefined symbol: _ZN3c10')"
    (modules / "flash_attn_interface.py").write_text(broken)
    (modules / "flash_attn").mkdir()  # a namespace that somebody's uninstall left
    backend, why = choose_attention("auto", GPUS["H200"], BRAIN)
    assert backend == "triton"
    assert "undefined symbol: _ZN3c10" in why and f"torch {torch.__version__}" in why
    assert "flash_attn has no flash_attn_varlen_func" in why
    with pytest.raises(ValueError, match="undefined symbol"):
        choose_attention("FLASH_ATTN", GPUS["H200"], BRAIN)


def test_a_library_is_loaded_once(modules: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs = "import a_module_that_is_nowhere"
    (modules / "flash_attn_interface.py").write_text(needs)
    said = missing("flash_attn_interface")
    assert said is not None and "cannot be loaded" in said and "a_module_that_is_nowhere" in said
    whole = ModuleType("flash_attn_interface")
    whole.flash_attn_with_kvcache = print  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn_interface", whole)
    assert missing("flash_attn_interface") == said
    missing.cache_clear()
    assert missing("flash_attn_interface") is None
