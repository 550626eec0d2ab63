"""Ctrl-C that is heard wherever the main thread waits.

Python runs a signal's handler between two of its instructions. A signal that comes after the last
of them and before a wait in the system is heard when that wait ends, which may be never. Another
signal ends it, whose own handler does nothing.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

WAKE = signal.SIGURG
WAKE_AFTER_S = 0.05
"""By then a handler that could run has run."""


@contextmanager
def heard() -> Iterator[None]:
    """Within it Ctrl-C does what it does at once; for the main thread."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    waked_before = signal.signal(WAKE, lambda number, frame: None)
    told_before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    main = threading.get_ident()
    waking = threading.Thread(target=_wake, args=(reading, main), name="ctrl-c", daemon=True)
    waking.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(told_before)
        os.close(writing)
        waking.join()
        os.close(reading)
        signal.signal(WAKE, waked_before)


def _wake(reading: int, main: int) -> None:
    while numbers := os.read(reading, 64):
        if signal.SIGINT in numbers:
            time.sleep(WAKE_AFTER_S)
            signal.pthread_kill(main, WAKE)
