"""SIGTERM as a word: heard from any thread, once."""

from __future__ import annotations

import signal
import subprocess
import sys

SCRIPT = """
import signal, sys, threading, time
from shoal.cluster.sigterm import on_sigterm

def others(number, frame):  # as Ray's
    sys.exit(3)

signal.signal(signal.SIGTERM, others)

def told():
    print("told", flush=True)
    threading.Event().wait()

def begin():
    on_sigterm(told)
    print("ready", flush=True)

threading.Thread(target=begin).start()
time.sleep(100)
"""


def test_the_first_sigterm_is_told_and_a_later_one_ends_the_process() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        child.send_signal(signal.SIGTERM)
        assert child.stdout.readline() == "told\n"
        assert child.poll() is None
        while child.poll() is None:  # the same signal again, until it is taken for another one
            child.send_signal(signal.SIGTERM)
            try:
                child.wait(0.1)
            except subprocess.TimeoutExpired:
                continue
        assert child.returncode == 3
    finally:
        child.kill()
        child.communicate()
