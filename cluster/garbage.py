"""When Python looks for garbage in a process that serves."""

from __future__ import annotations

import gc

YOUNG = 10_000
"""Objects that may come, less those that go, before Python looks through these."""


def settle() -> None:
    """Spare what lasts. To be called once what a server needs is loaded.

    That is never looked at again, 0.1 s without a token. What has come since, 10,000 waiting
    requests say, takes 45 ms to look through, in which no step goes on. Python would do so every
    60 steps of 1,024 rows, whose objects, 1,400 at a time, soon go by themselves: of those it
    takes no notice here, and looks through everything once a million more have come than gone.

    So much garbage may wait for that, and no more. It is nothing large: of a request, however it
    ends, nothing is in a cycle, and of its connection seven objects of asyncio's are, 0.6 KB, so
    that a million hold 0.1 GB.
    """
    gc.freeze()
    gc.set_threshold(YOUNG, *gc.get_threshold()[1:])
