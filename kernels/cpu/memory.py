"""Large tensors in pages of 2 MiB: weights and caches are read once a step from end to end."""

from __future__ import annotations

import ctypes
import math
import mmap
from contextlib import suppress

import torch
from torch import Tensor

_PAGE = 2 << 20


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor of zeros that begins at a large page, where the kernel grants such pages.

    Pages are taken when first written: whoever writes first decides their NUMA node.
    """
    count = math.prod(shape)
    num_bytes = count * dtype.itemsize
    # A length of whole pages lets the last one be large too.
    length = -(-max(num_bytes, 1) // _PAGE) * _PAGE + _PAGE
    # What is shared, mmap's default, is shared memory, for which large pages are mostly off.
    held = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        # Refused by kernels that were built without large pages.
        with suppress(OSError):
            held.madvise(mmap.MADV_HUGEPAGE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(held))
    if not count:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(held, dtype=dtype, count=count, offset=-address % _PAGE).view(shape)
