"""The logs of several processes as one stream."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from shoal.cluster.log_lines import Entry, Follower, last


def line(second: int, text: str) -> str:
    return f"2026-01-01 00:00:{second:02},000 INFO shoal: {text}\n"


def test_entries_stand_in_the_order_of_time(tmp_path: Path) -> None:
    (tmp_path / "serve.log").write_text(line(1, "a") + line(4, "d") + "Traceback:\n  x\n")
    (tmp_path / "replica-0.log.1").write_text(line(0, "old"))
    (tmp_path / "replica-0.log").write_text(line(2, "b") + line(3, "c"))
    (tmp_path / "console.log").write_text("printed\n")
    found = [(entry.source, entry.text.split(": ", 1)[-1]) for entry in last(tmp_path, 10)]
    assert found == [
        ("console", "printed"),
        ("replica-0", "old"),
        ("serve", "a"),
        ("replica-0", "b"),
        ("replica-0", "c"),
        ("serve", "d\nTraceback:\n  x"),
    ]
    assert [entry.time[17:19] for entry in last(tmp_path, 2)] == ["03", "04"]
    assert last(tmp_path, 0) == []


def test_what_is_added_is_followed(tmp_path: Path) -> None:
    log, later = tmp_path / "serve.log", tmp_path / "replica-0.log"
    log.write_text(line(1, "before"))
    with closing(Follower(tmp_path)) as follower:
        assert follower.new() == []
        with log.open("a") as file:
            file.write(line(2, "whole") + line(3, "half")[:-3])
            file.flush()
            assert texts(follower.new()) == ["whole"]
            file.write(line(3, "half")[-3:])
        later.write_text(line(4, "a new file"))
        assert texts(follower.new()) == ["half", "a new file"]
        with log.open("a") as file:
            file.write(line(5, "last of the old"))
        log.rename(tmp_path / "serve.log.1")
        log.write_text(line(6, "first of the new"))
        assert texts(follower.new()) == ["last of the old", "first of the new"]
        log.write_text(line(7, "x"))  # emptied, and begun anew
        assert texts(follower.new()) == ["x"]


def texts(entries: list[Entry]) -> list[str]:
    return [entry.text.split(": ", 1)[-1] for entry in entries]
