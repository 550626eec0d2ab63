"""Text of a model made harmless for a terminal."""

from __future__ import annotations

_PICTURES = 0x2400
_DELETE = 0x7F

_HARMLESS: dict[int, str | None] = {
    **{code: chr(_PICTURES + code) for code in range(0x20) if code not in (0x09, 0x0A, 0x0D)},
    ord("\r"): None,
    _DELETE: "\u2421",
    **dict.fromkeys((*range(0x80, 0xA0), *range(0xD800, 0xE000)), "\ufffd"),
}


def clean(text: str) -> str:
    """`text` without what a terminal obeys: control characters become their pictures.

    Tabs and line ends stay; carriage returns, which let a line be overwritten, are dropped; halves
    of surrogate pairs, which no encoding takes, become U+FFFD.
    """
    return text.translate(_HARMLESS)
