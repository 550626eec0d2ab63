"""Markdown that comes in pieces: nothing is lost, nothing depends on the pieces."""

from __future__ import annotations

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from shoal.cluster.chat.markdown import MAX_BLOCK, Block, Cutter, MarkdownStream
from shoal.cluster.chat.markdown import drawn as draw
from shoal.cluster.escapes import clean

LINES = st.sampled_from(
    [
        *("", "", "some words", "a <b>tag</b> & more", "- item", "- [ ] task", "1. one", "2. two"),
        *("   inside", "# Title", "```python", "```", "~~~", "x = 1 < 2", "| a | b |", "|---|---|"),
        *("> quote", "***", "Title", "---", "    four spaces", "`code <i>`", "**bold** _it_"),
    ]
)


def cut(*pieces: str) -> list[Block]:
    cutter = Cutter()
    return [block for piece in pieces for block in cutter.add(piece)] + list(cutter.end())


def shown(*blocks: Block, width: int = 80) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, height=24, color_system=None)
    for block in blocks:
        console.print(draw(block))
    return out.getvalue()


@given(st.lists(LINES, max_size=30).map("\n".join), st.lists(st.integers(1, 9), min_size=1))
def test_blocks_do_not_depend_on_the_pieces(text: str, sizes: list[int]) -> None:
    pieces, place = [], 0
    while place < len(text):
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(text[place : place + size])
        place += size
    assert cut(*pieces) == cut(text)


@given(st.lists(LINES, max_size=30).map("\n".join))
def test_no_word_is_lost(text: str) -> None:
    written = [word for word in re.findall("[A-Za-z]{2,}", text) if word != "python"]
    drawn = [word for word in re.findall("[A-Za-z]{2,}", shown(*cut(text))) if word != "python"]
    assert drawn == written


def test_what_is_a_block() -> None:
    text = "Intro:\n1. one\n   more\n2. two\n\n3. three\n\nEnd.\n```py\na\n\nb\n```\nbye"
    assert cut(text) == [
        Block("Intro:"),
        Block("1. one\n   more"),
        Block("2. two"),
        Block("3. three", gap=True),
        Block("End.", gap=True),
        Block("a\n\nb", "py", gap=True),
        Block("bye", gap=True),
    ]


def test_lines_end_where_they_were_ended() -> None:
    assert shown(*cut("a rose\nis a **rose**\n")).split() == ["a", "rose", "is", "a", "rose"]
    assert shown(*cut("a rose\nis a **rose**\n")).count("\n") == 2


def test_lists_go_on_counting() -> None:
    assert shown(*cut("1. a\n2. b\n")).split() == ["1", "a", "2", "b"]


def test_every_line_of_code_is_there() -> None:
    code = "\n".join(f"{'    ' * (i % 3)}x{i}" if i % 5 else "" for i in range(50))
    out = shown(*cut(f"```python\n{code}\n```"))
    assert [line.rstrip() for line in out.splitlines()] == [
        f"  {line}".rstrip() for line in code.splitlines()
    ]


def test_tags_and_links_are_seen() -> None:
    out = shown(*cut("a <div> and `<p>` and [here](http://x.y/z)\n\n<script>\nhi\n</script>"))
    for part in ("a <div> and <p>", "http://x.y/z", "<script>", "hi"):
        assert part in out


def test_a_text_without_an_end_is_not_drawn_again_and_again() -> None:
    cutter = Cutter()
    longest = 0
    for _ in range(5000):
        list(cutter.add("word "))
        block = cutter.open()
        longest = max(longest, len(block.text) if block else 0)
    assert longest <= MAX_BLOCK + 5


def test_only_the_block_under_way_is_drawn_anew() -> None:
    out = io.StringIO()
    console = Console(file=out, width=80, height=10, force_terminal=True)
    text = "".join(f"paragraph {i}\n\n" for i in range(300))
    with MarkdownStream(console) as stream:
        for letter in text:
            stream.write(letter)
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", out.getvalue())
    assert plain.count("paragraph 7\n") + plain.count("paragraph 7 ") <= 3
    assert [i for i in range(300) if f"paragraph {i}" not in plain] == []


@pytest.mark.parametrize(
    ("text", "harmless"),
    [
        ("\x1b[31mred\x07", "␛[31mred␇"),
        ("over\rwritten\r\n", "overwritten\n"),
        ("tab\tline\n", "tab\tline\n"),
        ("\x9b31m \x7f \ud800", "\ufffd31m ␡ \ufffd"),
        ("grün 日本 🙂", "grün 日本 🙂"),
    ],
)
def test_what_a_terminal_would_obey_becomes_a_picture(text: str, harmless: str) -> None:
    assert clean(text) == harmless


@given(st.text())
def test_nothing_that_a_terminal_obeys_comes_through(text: str) -> None:
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", clean(text))
