"""Which modules compute on CUDA, the preferred one first."""

from __future__ import annotations

import logging
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import NamedTuple

from .. import reference


class Choice(NamedTuple):
    """What a thread computes with on CUDA.

    attention  whose attention: `triton`, `FLASH_ATTN`, `FLASHINFER`, or `torch` for the reference
    exact      a row's result is the same bits whatever else is in the batch
    """

    attention: str = "triton"
    exact: bool = False


SMALL_OPS = ("norm", "elementwise", "heads", "draw", "cut", "mask", "penalties", "top")

ATTENTION = {
    "triton": ("attention",),
    "FLASH_ATTN": ("with_flash_attn", "attention"),
    "FLASHINFER": ("with_flashinfer", "attention"),
    "torch": (),
}
"""A backend's module, and whose takes what it leaves."""

LIBRARIES = {"with_flash_attn": "FLASH_ATTN", "with_flashinfer": "FLASHINFER"}
"""Modules that call somebody else's kernels; the others are Triton's."""

log = logging.getLogger(__name__)


@cache
def backends(attention: str, exact: bool) -> tuple[ModuleType, ...]:
    """The modules for `ops.Choice(attention, exact)`; the reference alone where no Triton is."""
    names = ("exact",) if exact else ATTENTION[attention]
    try:
        found = [import_module(f".{name}", __package__) for name in (*names, *SMALL_OPS)]
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        log.warning("triton is not installed: CUDA computes with torch's own operations, slowly")
        found = []
    return (*found, reference)
