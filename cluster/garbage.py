"""When Python looks for garbage in a process that serves."""

from __future__ import annotations

import gc

RARELY = 1000
"""Collections of what is young for each of everything."""


def settle() -> None:
    """Spare what lasts. To be called once what a server needs is loaded.

    That is never looked at again, 0.1 s without a token. What has come since, 10,000 waiting
    requests say, is as good as never garbage either, but takes 45 ms to look through, in which no
    step goes on: that is done a hundred times less often than Python would.
    """
    gc.freeze()
    gc.set_threshold(*gc.get_threshold()[:2], RARELY)
