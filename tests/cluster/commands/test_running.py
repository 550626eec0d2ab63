"""The files by which serves are found, and which one a word means."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from shoal.cluster.commands.stop import choose
from shoal.cluster.running import Running, born, registered, running
from shoal.cluster.settings import serve_config
from shoal.engine.errors import ShoalError


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the files lie."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    return tmp_path / "shoal" / "run"


def test_there_while_it_runs_and_gone_after(place: Path) -> None:
    with registered(serve_config({"port": 9000}, {})) as registration:
        (entry,) = running()
        assert (entry.pid, entry.port, entry.ready) == (os.getpid(), 9000, False)
        registration.ready()
        assert running()[0].ready
    assert running() == [] and list(place.iterdir()) == []


def test_what_the_dead_left_is_removed(place: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with registered(serve_config({}, {})):
        (own,) = place.iterdir()
        text = own.read_text()
        # One whose process has died, and one whose number has gone to another process.
        (place / "1.json").write_text(text.replace(f'"pid":{os.getpid()}', '"pid":999999999'))
        (place / "2.json").write_text(text.replace(f'"pid":{os.getpid()}', f'"pid":{process.pid}'))
        (place / "3.json").write_text(text.replace('"machine":"', '"machine":"elsewhere-'))
        (place / "4.json").write_text("{")
        assert [entry.pid for entry in running()] == [os.getpid()]
        assert sorted(path.name for path in place.glob("[0-9].json")) == ["3.json", "4.json"]
    process.communicate()
    assert born(process.pid) is None


def test_without_a_place_for_its_file_it_serves_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "shoal").write_text("no folder")
    with registered(serve_config({}, {})):
        assert running() == []


def entry(**fields: object) -> Running:
    with registered(serve_config(fields, {})):
        return running()[0]


def test_which_one_is_meant() -> None:
    one, two = entry(port=1111, model="a/b"), entry(port=2222, name="flock", model="c/d")
    for which in ("1111", "a/b", "shoal"):
        assert choose([one, two], which) is one
    assert choose([two], None) is two
    for which, said in ((None, "several"), ("x", "none of"), (str(os.getpid()), "several")):
        with pytest.raises(ShoalError, match=said) as told:
            choose([one, two], which)
        assert "shoal on port 1111, flock on port 2222" in told.value.message
    with pytest.raises(ShoalError, match="nothing"):
        choose([], None)
