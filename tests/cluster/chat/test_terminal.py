"""A conversation at a real pseudo terminal, with real keys."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.chat.conftest import Terminal
from tests.cluster.chat.echo import Server

CTRL_D, UP = "\x04", "\x1b[A"
Make = Callable[..., Terminal]


def said(server: Server) -> list[str]:
    """The last message of each request."""
    return [body["messages"][-1]["content"] for body in server.bodies]


@pytest.fixture
def chat(terminal: Make, server: Server) -> Terminal:
    started = terminal("chat", "--url", server.url)
    started.until("> ")
    return started


def test_ctrl_c_ends_the_request_and_ctrl_d_leaves(chat: Terminal, server: Server) -> None:
    chat.keys("one hang\r")
    chat.until("one hang\n")
    chat.until("one hang")
    chat.interrupt()
    assert server.gone.wait(60)
    chat.until("interrupted]")
    chat.until("> ")
    chat.keys("two\r")
    chat.until("two\n")
    chat.until("two")
    chat.until("> ")
    chat.keys(CTRL_D)
    assert chat.process.wait(180) == 0
    roles = [(m["role"], m["content"]) for m in server.bodies[1]["messages"]]
    assert roles == [("user", "one hang"), ("assistant", "one hang"), ("user", "two")]


def test_ctrl_c_at_the_prompt_says_how_to_leave(chat: Terminal, server: Server) -> None:
    chat.keys("half a line")
    chat.until("half a line")
    chat.interrupt()
    chat.until("(Ctrl-D or /exit leaves)")
    chat.until("> ")
    chat.keys("/exit\r")
    assert chat.process.wait(180) == 0
    assert server.bodies == []


def test_messages_of_several_lines(chat: Terminal, server: Server) -> None:
    for keys in ("one\\\rtwo\r", '"""three\rfour"""\r', "\x1b[200~five\nsix\x1b[201~\r"):
        chat.keys(keys)
        chat.until("output tokens")
        chat.until("> ")
    assert said(server) == ["one\ntwo", "three\nfour", "five\nsix"]


def test_history_lasts_and_is_nobody_elses(terminal: Make, server: Server, tmp_path: Path) -> None:
    for keys in ("first\\\rline\r", UP + "\r"):
        chat = terminal("chat", "--url", server.url)
        chat.until("> ")
        chat.keys(keys)
        chat.until("output tokens")
        chat.until("> ")
        chat.keys(CTRL_D)
        assert chat.process.wait(180) == 0
    assert said(server) == ["first\nline", "first\nline"]
    (history,) = (tmp_path / "state").rglob("chat_history")
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    assert history.read_text() == '"first\\nline"\n'


def test_commands(chat: Terminal, server: Server, tmp_path: Path) -> None:
    saved = tmp_path / "talk.md"
    for keys, answer in (
        ("/system be kind\r", "system: be kind"),
        ("hello there\r", "hello there"),
        ("/stats\r", "all 1: 7 prompt tokens, 2 output tokens"),
        ("/model\r", "* echo"),
        ("/model nope\r", "error: 'nope' is not served here, but: echo"),
        (f"/save {saved}\r", "3 messages are in"),
        ("/reset\r", "the conversation begins anew; the system message stays"),
        ("/rest\r", "error: no command /rest; /help lists all"),
        ("/etc/hosts is what\r", "/etc/hosts is what"),
        ("//stats\r", "/stats"),
        ("/help\r", "/stats"),
    ):
        chat.keys(keys)
        chat.until("\n")  # the echo
        chat.until(answer)
        chat.until("> ")
    first, path, slashes = (body["messages"] for body in server.bodies)
    assert [m["role"] for m in first] == ["system", "user"]
    assert [m["content"] for m in path] == ["be kind", "/etc/hosts is what"]
    assert slashes[-1]["content"] == "/stats"
    assert saved.read_text() == "## system\n\nbe kind\n\n## user\n\nhello there\n\n" + (
        "## assistant\n\nhello there\n"
    )


def test_a_refusal_takes_the_message_back(chat: Terminal, server: Server) -> None:
    chat.keys("refuse\r")
    chat.until("error: the server answered 400: no \N{SYMBOL FOR ESCAPE}such thing")
    chat.until("> ")
    chat.keys("again\r")
    chat.until("output tokens")
    assert [m["content"] for m in server.bodies[1]["messages"]] == ["again"]


@pytest.mark.parametrize("plain", [(), ("--plain",)])
def test_what_a_terminal_would_obey_is_shown(
    terminal: Make, server: Server, plain: tuple[str, ...]
) -> None:
    chat = terminal("chat", "--url", server.url, *plain)
    chat.until("> ")
    chat.keys("escape\r")
    chat.until("output tokens")
    answer = chat.raw.split(b"escape", 1)[1]
    assert "␛]0;owned␇".encode() in answer
    for raw in (b"\x1b]0;owned", b"\x9b31m", b"\x07"):
        assert raw not in answer


@pytest.mark.parametrize("environ", [{"TERM": "dumb"}, {"NO_COLOR": "1"}])
def test_without_colours(terminal: Make, server: Server, environ: dict[str, str]) -> None:
    chat = terminal("chat", "--url", server.url, **environ)
    chat.until("> ")
    chat.keys("**two words**\r")
    chat.until("words**\n")
    shown = chat.until("output tokens")
    assert "two words" in shown and ("**" in shown) is (environ.get("TERM") == "dumb")
    assert b"\x1b[3" not in chat.raw


def test_a_code_block_comes_once_and_whole(chat: Terminal, server: Server) -> None:
    chat.keys("code\r")
    shown = chat.until("the end")
    chat.until("output tokens")
    lines = [line.strip() for line in shown.splitlines()]
    assert [lines.count(f"line_{i} = {i}") >= 1 for i in range(100)] == [True] * 100
    assert shown.count("line_0 = 0") < 30  # not drawn again for each of the hundred
