"""What `shoal status` prints of an answer of GET /cluster."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from shoal.cluster.commands.status import MOST_DECISIONS, show


def told(decisions: list[dict[str, Any]]) -> dict[str, Any]:
    scaling = {"model": "m", "replicas": 2, "min_replicas": 1, "max_replicas": 4, "sustains": None}
    gateways = [{"node": "127.0.0.1", "pid": 7, "streams": 3}]
    return {
        "replicas": [],
        "gateways": gateways,
        "scaling": [scaling | {"decisions": decisions}] if decisions else [],
    }


def decision(ago_s: float, before: int, after: int, why: str) -> dict[str, Any]:
    line = f"{before} -> {after} replicas: {why}"
    return {"at": time.time() - ago_s, "from": before, "to": after, "line": line}


def test_decisions_are_shown_with_their_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    made = [decision(100 - i, 1, 2, f"reason {i}") for i in range(MOST_DECISIONS + 2)]
    show(told(made), as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-MOST_DECISIONS - 1].split() == ["DECIDED", "MODEL", "WHY"]
    assert lines[-1].split(maxsplit=4)[2:] == ["ago", "m", "1 -> 2 replicas: reason 9"]
    assert ["m", "2", "1", "4"] in [line.split() for line in lines]
    assert not any("reason 1" in line for line in lines)


def test_json_has_them_all_and_a_fixed_fleet_has_none(capsys: pytest.CaptureFixture[str]) -> None:
    answer = told([decision(1, 2, 1, "quiet")])
    show(answer, as_json=True)
    assert json.loads(capsys.readouterr().out) == answer
    show(told([]), as_json=False)
    assert "DECIDED" not in capsys.readouterr().out
