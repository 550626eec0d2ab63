"""Ctrl-C that comes in the moment before the main thread waits."""

from __future__ import annotations

import signal
import subprocess
import sys

WAITS = """
import os, signal, socket, threading
from shoal.cluster.ctrl_c import heard

before = [signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGURG)]
ours, theirs = socket.socketpair()
try:
    with heard():
        # Another thread takes the signal: the main one waits on as if it had come a moment before.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        print("waits", flush=True)
        ours.recv(1)
except KeyboardInterrupt:
    print("heard", flush=True)
assert [signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGURG)] == before
assert signal.set_wakeup_fd(-1) == -1 and threading.active_count() == 1
"""


def test_it_ends_a_wait_that_had_begun_unaware_of_it() -> None:
    command = [sys.executable, "-c", WAITS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waits\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.read() == "heard\n"
        assert process.wait(60) == 0
