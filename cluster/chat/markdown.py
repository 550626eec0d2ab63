"""Markdown on a terminal while it is being written.

Text is cut into blocks (a paragraph, a list item, a few lines of code, a table). What is finished
is printed once and never touched again; only the block under way is drawn anew.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import ClassVar, NamedTuple

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.markdown import Heading, Markdown
from rich.padding import Padding
from rich.segment import Segment
from rich.syntax import Syntax

MAX_BLOCK = 6000  # characters of a block under way: drawing it costs time by its length
CODE_LINES = 12  # of code drawn at once
REFRESH_PER_S = 12
CODE_THEME = "ansi_dark"

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})\s*([\w+#.-]*)")
_ITEM = re.compile(r"([-*+]|\d{1,9}[.)]) ")
_HEADING = re.compile(r"#{1,6} ")


class Block(NamedTuple):
    """A piece of Markdown that can be drawn alone; `language`: it is code. `gap`: a blank line
    comes before it."""

    text: str
    language: str | None = None
    gap: bool = False


class Cutter:
    """Cuts a text that comes in pieces into blocks."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._rest = ""
        self._fence: tuple[str, str] | None = None
        self._blank = False
        self._gap = False
        self._any = False

    def add(self, piece: str) -> Iterator[Block]:
        """The blocks that `piece` finished."""
        *lines, self._rest = (self._rest + piece).split("\n")
        for line in lines:
            yield from self._line(line)
        if self._size() > MAX_BLOCK:
            yield from self._cut_long()

    def open(self) -> Block | None:
        """The block under way."""
        if self._fence and _closes(self._rest, self._fence[0]):
            return self._block(self._lines)
        lines = [*self._lines, *([self._rest] if self._rest else [])]
        return self._block(lines)

    def end(self) -> Iterator[Block]:
        """What is left when the text has ended."""
        if self._rest:
            yield from self._line(self._rest)
        self._rest = ""
        yield from self._finish()

    def _line(self, line: str) -> Iterator[Block]:
        if self._fence:
            yield from self._code_line(line)
        elif fence := _FENCE.match(line):
            yield from self._finish()
            self._gap = True
            self._fence = (fence[1], fence[2])
        elif not line.strip():
            self._blank = bool(self._lines) or self._blank
            self._gap = self._gap or not self._lines
            if self._lines:
                self._lines.append("")
        else:
            if self._starts_anew(line):
                loose = self._blank
                yield from self._finish()
                self._gap = loose or not _ITEM.match(line)
            self._blank = False
            self._lines.append(line)

    def _code_line(self, line: str) -> Iterator[Block]:
        assert self._fence is not None
        if _closes(line, self._fence[0]):
            yield from self._finish()
            self._fence, self._gap = None, True
            return
        self._lines.append(line)
        if len(self._lines) >= CODE_LINES:
            yield from self._finish()
            self._gap = False

    def _starts_anew(self, line: str) -> bool:
        """Whether `line` is no part of the block before it."""
        if not self._lines or line[0] in " \t":
            return False
        return self._blank or bool(_ITEM.match(line) or _HEADING.match(line)) or self._after_title()

    def _after_title(self) -> bool:
        return bool(_HEADING.match(self._lines[0]))

    def _finish(self) -> Iterator[Block]:
        block = self._block(self._lines)
        self._lines, self._blank = [], False
        if block is not None:
            self._any = True
            yield block

    def _block(self, lines: list[str]) -> Block | None:
        language = self._fence[1] or "text" if self._fence else None
        text = "\n".join(lines)
        if not text.strip() and language is None:
            return None
        if not lines:
            return None
        return Block(text if language else text.rstrip(), language, self._gap and self._any)

    def _size(self) -> int:
        return sum(map(len, self._lines)) + len(self._rest)

    def _cut_long(self) -> Iterator[Block]:
        """End a block that has no end, at a word."""
        if not self._fence:
            kept, space, self._rest = self._rest.rpartition(" ")
            if not space:
                kept, self._rest = self._rest, ""
        else:
            kept, self._rest = self._rest, ""
        self._lines += [kept] if kept else []
        yield from self._finish()
        self._gap = False


def _closes(line: str, fence: str) -> bool:
    mark = line.strip()
    return len(mark) >= len(fence) and set(mark) == {fence[0]}


class _Left(Heading):
    """Headings at the left, as text is."""

    LEVEL_ALIGN = dict.fromkeys(Heading.LEVEL_ALIGN, "left")


class _Prose(Markdown):
    """Markdown whose lines end where they were ended, whose HTML is text, and whose links show
    where they lead."""

    elements: ClassVar = {**Markdown.elements, "heading_open": _Left}

    def __init__(self, text: str) -> None:
        super().__init__(_without_html(text), code_theme=CODE_THEME, hyperlinks=False)
        for token in self.parsed:
            for part in token.children or ():
                if part.type == "softbreak":
                    part.type = "hardbreak"


def _without_html(text: str) -> str:
    """`<` outside of code as an entity: a renderer leaves out what looks like a tag."""
    parts = re.split(r"(`+[^`]*`+)", text)
    return "".join(p if i % 2 else p.replace("<", "&lt;") for i, p in enumerate(parts))


class _Trimmed:
    """What rich draws, without the empty lines that it puts around lists and tables."""

    def __init__(self, prose: _Prose) -> None:
        self._prose = prose

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(self._prose, options.update(height=None), pad=False)
        full = [i for i, line in enumerate(lines) if "".join(part.text for part in line).strip()]
        for line in lines[full[0] : full[-1] + 1] if full else []:
            yield from line
            yield Segment.line()


def drawn(block: Block) -> Padding | _Trimmed:
    """A block as rich draws it."""
    if block.language is None:
        return _Trimmed(_Prose(block.text))
    syntax = Syntax(
        block.text, block.language, theme=CODE_THEME, background_color="default", word_wrap=True
    )
    return Padding(syntax, (0, 0, 0, 2))


class _Tail:
    """The last lines of a block under way that the screen has room for; drawn when it changes."""

    def __init__(self, block: Block) -> None:
        self._block = block
        self._lines: list[list[Segment]] | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self._lines is None:
            whole = console.render_lines(drawn(self._block), options.update(height=None), pad=False)
            gap = [[Segment("")]] if self._block.gap else []
            self._lines = [*gap, *whole][-max(console.height - 2, 1) :]
        for line in self._lines:
            yield from line
            yield Segment.line()


class MarkdownStream:
    """Writes a text that comes in pieces. Use it as a context; leaving prints what is left."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._cutter = Cutter()
        self._live = Live(
            "",
            console=console,
            transient=True,
            refresh_per_second=REFRESH_PER_S,
            vertical_overflow="crop",
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> MarkdownStream:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.update("")
        self._live.stop()
        for block in self._cutter.end():
            self._print(block)

    def write(self, piece: str) -> None:
        """Add a piece."""
        for block in self._cutter.add(piece):
            self._live.update("")
            self._print(block)
        block_under_way = self._cutter.open()
        self._live.update(_Tail(block_under_way) if block_under_way else "")

    def _print(self, block: Block) -> None:
        if block.gap:
            self._console.print()
        self._console.print(drawn(block))
