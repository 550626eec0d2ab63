"""Memory in large pages, and where there are none."""

from __future__ import annotations

import errno
import mmap

import pytest
import torch
from shoal.kernels.cpu import memory


class NoLargePages(mmap.mmap):
    """Memory of a kernel that was built without large pages."""

    def madvise(self, *_: int) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")


@pytest.mark.parametrize("pages", [mmap.mmap, NoLargePages])
def test_memory_is_zeros_at_a_large_page_whatever_the_kernel_grants(
    pages: type[mmap.mmap], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mmap, "mmap", pages)
    x = memory.empty((3, 5), torch.float32)
    assert x.shape == (3, 5) and not x.any()
    assert x.data_ptr() % (2 << 20) == 0
    assert memory.empty((0, 5), torch.float32).shape == (0, 5)
