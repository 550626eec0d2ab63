"""What keeps an application from serving."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
from shoal.cluster import readiness
from shoal.cluster.banner import Progress
from shoal.cluster.settings import serve_config
from shoal.engine.errors import EngineLost


def test_one_that_is_taken_off_while_it_starts_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nothing = SimpleNamespace(failure=lambda named: None, all=lambda kind: {})
    monkeypatch.setattr(readiness, "Facts", lambda name: nothing)
    monkeypatch.setattr(readiness.serve, "status", lambda: SimpleNamespace(applications={}))
    with pytest.raises(EngineLost, match="shoal was taken off its Ray before it was ready"):
        readiness.await_ready(serve_config({}, {}), threading.Event(), Progress())
