"""Which backend computes an op, by device and dtype: the preferred one of those that have it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from . import reference
from .cpu import backend as native
from .cpu import bindings
from .cpu import sampling as native_sampling
from .cpu.panels import Packed
from .gpu import choice as gpu_choice
from .gpu.backends import LIBRARIES, Choice, backends

_chosen = threading.local()


def use(choice: Choice) -> None:
    """Have the calling thread compute by this choice from now on; `Choice()` until it says so."""
    _chosen.choice = choice


def release(choice: Choice) -> None:
    """Let go of the memory that this choice's backends keep on a GPU from step to step."""
    for module in backends(*choice):
        if hasattr(module, "release"):
            module.release()


_BACKENDS: dict[str, tuple[ModuleType, ...]] = {
    "cpu": (native, native_sampling, reference),
    "meta": (native, reference),
}
"""A device's backends, the preferred one first. One with `DTYPES` takes only those. On the meta
device a step is recorded; only ops on CPUs are."""


def _backends(device: str, choice: Choice) -> tuple[ModuleType, ...]:
    return backends(*choice) if device == "cuda" else _BACKENDS.get(device, ())


@cache
def _find(op: str, device: str, dtype: torch.dtype, choice: Choice) -> Any:
    for module in _backends(device, choice):
        if hasattr(module, op) and dtype in getattr(module, "DTYPES", (dtype,)):
            return getattr(module, op)
    return getattr(reference, op, None)


def backend(op: str, x: Tensor | Packed, by: Tensor | None = None) -> Callable[..., Any]:
    """Who computes an op of x's dtype on x's device, or on that of `by`."""
    choice = getattr(_chosen, "choice", Choice())
    found: Callable[..., Any] = _find(op, (x if by is None else by).device.type, x.dtype, choice)
    assert found is not None, op
    return found


def fused(op: str, x: Tensor) -> Callable[..., Any] | None:
    """Who computes in one go, for tensors like x, what is several ops elsewhere; None: nobody."""
    found: Callable[..., Any] | None = _find(
        op, x.device.type, x.dtype, getattr(_chosen, "choice", Choice())
    )
    return found


def computed_by(op: str, device: torch.device, dtype: torch.dtype, choice: Choice) -> str:
    """`native` and its instructions, `triton`, `FLASH_ATTN`, `FLASHINFER` or `torch`, by dtype."""
    *_, folder, module = _find(op, device.type, dtype, choice).__module__.split(".")
    if folder == "gpu":
        return LIBRARIES.get(module, "triton")
    instructions = bindings.instructions() if folder == "cpu" else None
    return "torch" if instructions is None else f"native {instructions}"


def is_slow(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether products in `dtype` are an order slower on a device than in others of its size."""
    return device.type == "cpu" and dtype is torch.float16


def page_columns(device: torch.device, dtype: torch.dtype, head_size: int, block_size: int) -> int:
    """How many columns a device's cache of this dtype has for a head."""
    if device.type == "cuda":
        return head_size
    return native.page_columns(dtype, head_size, block_size)


def dtype_gap(dtype: torch.dtype, device: torch.device) -> str | None:
    """Why a device computes nothing in `dtype`, and the way out; None where it does."""
    if device.type != "cuda":
        return None
    return gpu_choice.dtype_gap(gpu_choice.gpu(device), dtype)


def serving_dtype(own: torch.dtype, device: torch.device, *, small: bool) -> torch.dtype:
    """The dtype that a device computes a checkpoint of dtype `own` well in.

    On CUDA `own`, but float16 for bfloat16 on a GPU that lacks it. On CPUs float32 for a `small`
    model, whose text is then exact, and bfloat16 for others: float16 is slow there.
    """
    if device.type == "cuda":
        return own if dtype_gap(own, device) is None else torch.float16
    return torch.float32 if small else torch.bfloat16
