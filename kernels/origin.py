"""Whose code computes an op."""

from __future__ import annotations

import torch

from .cpu import structures
from .gpu.backends import LIBRARIES, Choice
from .ops import find


def computed_by(op: str, device: torch.device, dtype: torch.dtype, choice: Choice) -> str:
    """Whose code computes an op, as far as device and dtype decide: a shape may yet fall back.

    `native` and its instruction set, `triton`, `FLASH_ATTN`, `FLASHINFER`, or `torch`.
    """
    *_, folder, module = find(op, device, dtype, choice).__module__.split(".")
    if folder == "gpu":
        return LIBRARIES.get(module, "triton")
    instructions = structures.instructions() if folder == "cpu" else None
    return "torch" if instructions is None else f"native {instructions}"
