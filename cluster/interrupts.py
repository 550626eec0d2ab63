"""SIGINT and SIGTERM to `shoal serve`: the first says stop, a second ends it at once.

They are obeyed by a thread, since the main one may wait inside Ray, where Python's own handlers do
not run.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from .exits import FAILED, INTERRUPTED
from .sigterm import SAME_SIGNAL_S

STOPPING = (signal.SIGINT, signal.SIGTERM)

log = logging.getLogger(__name__)


@contextmanager
def interrupts(bound_s: float) -> Iterator[threading.Event]:
    """An event that the first signal sets, once `listen` was called on the main thread; what has
    not ended `bound_s` later ends then. A guard ends what is left below this process.
    """
    before = {number: signal.getsignal(number) for number in STOPPING}
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    woken_before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    stop = threading.Event()
    obeying = threading.Thread(target=_obey, args=(reading, stop, bound_s), daemon=True)
    obeying.start()
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(woken_before)
        os.close(writing)
        obeying.join()
        os.close(reading)


def listen() -> None:
    """From now on signals are heard; again after Ray has put handlers of its own in place."""
    for number in STOPPING:
        signal.signal(number, lambda number, frame: None)


def _obey(reading: int, stop: threading.Event, bound_s: float) -> None:
    """Wrappers such as timeout(1) deliver one signal twice: what follows at once is the same."""
    first = math.inf
    while numbers := os.read(reading, 64):
        if not set(numbers) & {*STOPPING}:
            continue
        if time.monotonic() - first > SAME_SIGNAL_S:
            os._exit(INTERRUPTED)
        if not stop.is_set():
            first = time.monotonic()
            stop.set()
            ending = threading.Timer(bound_s, _end, [bound_s])
            ending.daemon = True
            ending.start()


def _end(bound_s: float) -> None:
    log.critical("it was told to end %.0f s ago and has not; it ends at once", bound_s)
    os._exit(FAILED)
