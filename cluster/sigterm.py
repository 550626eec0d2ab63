"""SIGTERM to a process of Ray's as a word: end what you do, then end.

Ray's own handler ends the process at once, and only the main thread, which is Ray's, may put
another Python handler in place. faulthandler's runs below Python, is put in place from any thread,
and writes into a file that it is given: here a pipe that a thread reads.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import threading
from collections.abc import Callable

SAME_SIGNAL_S = 0.5
"""Wrappers such as timeout(1) deliver one signal twice."""


def on_sigterm(told: Callable[[], None]) -> None:
    """Have `told` called on a thread of its own at the first SIGTERM; a later one ends this process
    as before.
    """
    reading, writing = os.pipe()
    faulthandler.register(signal.SIGTERM, file=writing, all_threads=False)

    def wait() -> None:
        os.read(reading, 1)
        again = threading.Timer(SAME_SIGNAL_S, faulthandler.unregister, [signal.SIGTERM])
        again.daemon = True
        again.start()
        told()

    threading.Thread(target=wait, name="sigterm", daemon=True).start()


def exit_within(bound_s: float) -> None:
    """End this process after a while, whatever keeps it from ending by itself."""
    ending = threading.Timer(bound_s, os._exit, [1])
    ending.daemon = True
    ending.start()
