"""One process of a node at a time."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from shoal.engine.model import node_lock
from shoal.engine.model.node_lock import alone_on_this_node

HOLD = """
import sys
from pathlib import Path
from shoal.engine.model.node_lock import alone_on_this_node
with alone_on_this_node(Path(sys.argv[1]), "a/b"):
    print("held", flush=True)
    sys.stdin.readline()
"""


def holder(place: Path) -> subprocess.Popen[str]:
    """A process that holds the lock until it is sent a line, or dies."""
    held = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(place)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ,
    )
    assert held.stdout is not None and held.stdout.readline() == "held\n"
    return held


def test_another_process_waits_and_says_so(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(node_lock, "PATIENCE_S", 0.0)
    held = holder(tmp_path)
    order: list[str] = []
    told = threading.Event()
    monkeypatch.setattr(node_lock.log, "warning", lambda *_: told.set())

    def enter() -> None:
        with alone_on_this_node(tmp_path, "a/b"):
            order.append("entered")

    with alone_on_this_node(tmp_path, "c/d"):
        order.append("another model need not wait")
    waiting = threading.Thread(target=enter)
    waiting.start()
    assert told.wait(60)
    order.append("let go")
    held.kill()  # the lock goes with the process
    held.communicate()
    waiting.join(60)
    assert order == ["another model need not wait", "let go", "entered"]


def test_where_no_lock_can_be_had(tmp_path: Path) -> None:
    (tmp_path / ".locks").write_text("a file where the folder should be")
    with alone_on_this_node(tmp_path, "a/b"):
        pass
