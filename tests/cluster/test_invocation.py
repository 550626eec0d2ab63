"""The line that a result keeps to be repeated by: quoted, and without the keys in it."""

from __future__ import annotations

import shlex
import sys

import pytest
from shoal.cluster.config import SECRET
from shoal.cluster.invocation import SECRETS, invocation, redacted


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("--url http://h --seed 3", "--url http://h --seed 3"),
        ("--api-key sk-1 --seed 3", "--api-key ... --seed 3"),
        ("--api-key=sk-1 --seed 3", "--api-key=... --seed 3"),
        ("--api_key -sk-1 -- --replicas 2", "--api_key ... -- --replicas 2"),
        ("--header a=1 b=2 --json x", "--header ... ... --json x"),
        ("--header=a=1 b=2 --json x", "--header=... ... --json x"),
        ("-- --api-key one two --hf-token hf_3", "-- --api-key ... ... --hf-token ..."),
        ("--api-key", "--api-key"),
    ],
)
def test_secrets_are_hidden(line: str, told: str) -> None:
    assert redacted(line.split()) == told.split()


def test_every_secret_setting_is_one() -> None:
    assert {"--" + name.replace("_", "-") for name in SECRET} <= set(SECRETS)


@pytest.mark.parametrize(
    ("program", "shown"),
    [
        ("/somewhere/bin/shoal", "shoal"),
        ("/somewhere/shoal/__main__.py", "shoal"),
        ("benchmarks/chaos_nodes.py", "python benchmarks/chaos_nodes.py"),
    ],
)
def test_the_line_is_one_for_a_shell(
    program: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["bench", "--label", "two words", "--extra-body", '{"a": 1}']
    monkeypatch.setattr(sys, "argv", [program, *words])
    assert shlex.split(invocation()) == [*shown.split(), *words]
