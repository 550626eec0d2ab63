"""Which attention a GPU computes with, decided from what is known before a weight is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from typing import NamedTuple

import torch

Gap = str | None
"""Why a backend cannot serve; None where it can."""

WHOLE_TILES = 64
"""From so many tokens on FlashAttention 3 may read KV blocks in whole tiles (its smallest is of so
many keys). It hides only the scores behind a text's end: NaN that another text left there would
come through, times 0, from the values. Smaller blocks it reads row by row."""


class Library(NamedTuple):
    """What is called of a module, and how one comes by it."""

    function: str
    source: str


LIBRARIES = {
    "triton": Library("jit", "torch's builds for CUDA bring it"),
    "flash_attn": Library("flash_attn_varlen_func", "pip install flash-attn"),
    "flash_attn_interface": Library("flash_attn_with_kvcache", "build FlashAttention 3"),
    "flashinfer": Library("BatchPrefillWithPagedKVCacheWrapper", "pip install flashinfer-python"),
}


@cache
def missing(module: str) -> Gap:
    """Why one of LIBRARIES cannot be called; None where it can.

    Loads it, for a build for another torch is seen only then: for machines with a GPU alone.
    """
    function, source = LIBRARIES[module]
    try:
        found = import_module(module)
    except ModuleNotFoundError as error:
        if error.name == module:
            return f"{module} is not installed: {source}"
        return f"{module} cannot be loaded: {error}"
    except Exception as error:  # whatever its loading raises, another backend may serve
        return f"{module} cannot be loaded, was it built for torch {torch.__version__}? {error}"
    return None if hasattr(found, function) else f"{module} has no {function}: {source}"


class Gpu(NamedTuple):
    """One GPU; `hip`: AMD's, under ROCm."""

    name: str
    capability: tuple[int, int]
    hip: bool = False


class Model(NamedTuple):
    """What of a model decides."""

    dtype: torch.dtype
    head_sizes: tuple[int, ...]
    block_size: int


# From this compute capability on: what it is called, and what `auto` takes, the first that serves.
# FlashAttention 2 reads pages of 256 tokens and more alone, so with other pages it is passed over.
# FlashInfer plans each step on the host, which then waits for the device: only on request.
ARCHITECTURES: Sequence[tuple[tuple[int, int], str, tuple[str, ...]]] = (
    ((12, 0), "Blackwell (RTX 50)", ("triton", "torch")),
    ((10, 0), "Blackwell", ("triton", "torch")),
    ((9, 0), "Hopper", ("FLASH_ATTN", "triton", "torch")),
    ((8, 9), "Ada", ("FLASH_ATTN", "triton", "torch")),
    ((8, 0), "Ampere", ("FLASH_ATTN", "triton", "torch")),
    ((7, 5), "Turing", ("triton", "torch")),
    ((7, 0), "Volta", ("triton", "torch")),
)
AMD = ("triton", "torch")


def gpu(device: torch.device) -> Gpu:
    """The GPU of a CUDA device."""
    capability = torch.cuda.get_device_capability(device)
    return Gpu(torch.cuda.get_device_name(device), capability, torch.version.hip is not None)


def dtype_gap(gpu: Gpu, dtype: torch.dtype) -> Gap:
    """Why a GPU computes nothing in a dtype, and the way out."""
    if dtype is torch.bfloat16 and not gpu.hip and gpu.capability < (8, 0):
        return (
            f"{gpu.name} has compute capability {gpu.capability[0]}.{gpu.capability[1]}, and "
            f"bfloat16 needs 8.0 (Ampere) or later: set dtype to float16"
        )
    return None


def _triton(gpu: Gpu, model: Model, missing: Callable[[str], Gap]) -> Gap:
    if why := missing("triton"):
        return why
    if max(model.head_sizes) > 256:
        return f"its heads are of at most 256, and the model's of {max(model.head_sizes)}"
    return None


def _flash_attn(gpu: Gpu, model: Model, missing: Callable[[str], Gap]) -> Gap:
    if gpu.hip or gpu.capability < (8, 0):
        return f"it needs an NVIDIA GPU of Ampere (8.0) or later, and this is {gpu.name}"
    if model.dtype not in (torch.float16, torch.bfloat16):
        return f"it computes in float16 and bfloat16, not in {_name(model.dtype)}"
    if max(model.head_sizes) > 256 or any(size % 8 for size in model.head_sizes):
        return f"its heads are multiples of 8 up to 256, and the model's {model.head_sizes}"
    gaps = []
    if gpu.capability[0] == 9:
        gaps.append(missing("flash_attn_interface") or _whole_tiles(model.block_size))
        if gaps[0] is None:
            return None
    gaps.append(missing("flash_attn"))
    if gaps[-1] is not None:
        return "; ".join(filter(None, gaps))
    if model.block_size % 256:
        return (
            f"FlashAttention 2 reads KV blocks of a multiple of 256 tokens, and these are of "
            f"{model.block_size}: set block_size to 256"
        )
    return None


def _whole_tiles(block_size: int) -> Gap:
    if block_size < WHOLE_TILES:
        return None
    return (
        f"FlashAttention 3 reads behind a text's end in KV blocks of {WHOLE_TILES} tokens and "
        f"more, and these are of {block_size}: set block_size to 16"
    )


def _flashinfer(gpu: Gpu, model: Model, missing: Callable[[str], Gap]) -> Gap:
    if gpu.hip or gpu.capability < (7, 5):
        return f"it needs an NVIDIA GPU of Turing (7.5) or later, and this is {gpu.name}"
    if model.dtype not in (torch.float16, torch.bfloat16):
        return f"it computes in float16 and bfloat16, not in {_name(model.dtype)}"
    if not set(model.head_sizes) <= {64, 128, 256}:
        return f"its heads are of 64, 128 or 256, and the model's of {model.head_sizes}"
    return missing("flashinfer")


GAPS: dict[str, Callable[[Gpu, Model, Callable[[str], Gap]], Gap]] = {
    "triton": _triton,
    "FLASH_ATTN": _flash_attn,
    "FLASHINFER": _flashinfer,
    "torch": lambda gpu, model, missing: None,
}


def choose_attention(
    asked: str,
    gpu: Gpu,
    model: Model,
    *,
    exact: bool = False,
    missing: Callable[[str], Gap] = missing,
) -> tuple[str, str]:
    """The backend that `asked` (a name, or auto) means here, and why.

    Raises ValueError that says what cannot be served and what to do.
    """
    known = [row for row in ARCHITECTURES if row[0] <= gpu.capability]
    if not known and not gpu.hip:
        raise ValueError(
            f"{gpu.name} has compute capability {gpu.capability[0]}.{gpu.capability[1]}; a GPU of "
            f"7.0 (Volta) or later is needed"
        )
    if exact:
        return _exact(asked, gpu, model, missing)
    if asked != "auto":
        if why := GAPS[asked](gpu, model, missing):
            raise ValueError(f"attention_backend={asked} cannot be served: {why}")
        return asked, "asked for"
    where, order = ("AMD", AMD) if gpu.hip else known[0][1:]
    passed: list[str] = []
    for name in order:
        why = GAPS[name](gpu, model, missing)
        if why is None:
            said = "; ".join([f"first for {where}" if not passed else f"for {where}", *passed])
            return name, said
        passed.append(f"not {name}: {why}")
    raise AssertionError("torch serves everything")


def _exact(asked: str, gpu: Gpu, model: Model, missing: Callable[[str], Gap]) -> tuple[str, str]:
    if asked not in ("auto", "triton"):
        raise ValueError(
            f"deterministic computes attention in triton, and attention_backend={asked} promises "
            f"no order of additions: leave one of them out"
        )
    if why := _triton(gpu, model, missing):
        raise ValueError(f"deterministic computes attention in triton: {why}")
    return "triton", "deterministic"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
