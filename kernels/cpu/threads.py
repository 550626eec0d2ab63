"""Which threads the calling thread's native ops run on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .bindings import Pool

_WORTH_WAKING = 1 << 18
"""Elements from which on an op takes longer than to wake the other threads of a pool."""


class _Own(threading.local):
    """A thread's pools: the one that it was told to use, and those it opened for itself."""

    chosen: Pool | None = None
    opened: Pool | None = None
    alone: Pool | None = None


_own = _Own()


@contextmanager
def using(pool: Pool | None) -> Iterator[None]:
    """Inside, the calling thread's ops run on `pool`; on its own where that is None."""
    before, _own.chosen = _own.chosen, pool
    try:
        yield
    finally:
        _own.chosen = before


def current_pool() -> Pool:
    """The calling thread's pool; one of as many threads as torch uses, where it was told none."""
    if _own.chosen is not None:
        return _own.chosen
    threads = torch.get_num_threads()
    if _own.opened is None or _own.opened.threads != threads:
        _own.opened = Pool(threads)
    return _own.opened


def pool_for(elements: int) -> Pool:
    """The calling thread's pool, or no more than the thread itself for so few elements."""
    if elements >= _WORTH_WAKING:
        return current_pool()
    if _own.alone is None:
        _own.alone = Pool(1)
    return _own.alone
