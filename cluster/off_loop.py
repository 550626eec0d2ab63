"""Work that would hold up the event loop, and every stream on it, done on a thread beside it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from ..engine import text

LONG = text.LONG
"""So many characters, tokens or names take a millisecond or more: too long for the event loop."""

T = TypeVar("T")


async def off_loop(size: int, work: Callable[[], T]) -> T:
    """What `work` gives; done at once, without a suspension, where `size` is below LONG."""
    if size < LONG:
        return work()
    return await asyncio.to_thread(work)
