"""Which kinds of GPU the tuning tables know."""

from __future__ import annotations

from enum import Enum
from functools import cache

import torch


class Family(Enum):
    """GPUs that one column of a table serves, by the shared memory that a program may use."""

    HOPPER = "H100, H200, B200: 227 KB, and products of whole warp groups"
    AMPERE = "A100: 163 KB"
    SAFE = "all others, of 64 KB or more: RTX 30 to 50, L4, L40S, AMD"
    OLD = "V100, T4, RTX 20: Triton multiplies there without tensor cores, in many registers"


def family_of(capability: tuple[int, int]) -> Family:
    """The family of an NVIDIA GPU of this compute capability."""
    if capability == (8, 0):
        return Family.AMPERE
    if capability < (8, 0):
        return Family.OLD
    return Family.HOPPER if capability[0] in (9, 10) else Family.SAFE


@cache
def family(device: torch.device) -> Family:
    """The family of the GPU that tensors of a device lie on; in the interpreter the safe one."""
    if device.type != "cuda" or torch.version.hip is not None:
        return Family.SAFE
    return family_of(torch.cuda.get_device_capability(device))
