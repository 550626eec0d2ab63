"""configs/FLAGS.md says what the tables of the code say; this file writes it, too:

python tests/configs/test_flags_page.py > configs/FLAGS.md
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from shoal.cluster.config import keys
from shoal.cluster.environment import MEANINGS, PATTERNS, READ
from shoal.cluster.names import IDLE, NOT_BUILT, RENAMED, SHORT
from shoal.cluster.settings import setting, target
from shoal.engine.names import Foreign

PAGE = Path(__file__).resolve().parents[2] / "configs" / "FLAGS.md"

HEAD = """\
# vLLM's flags, and what they are here

Every flag of `vllm serve` from its first releases to 0.32 is in one of these tables: taken under
its own name, taken under another, taken although it changes nothing, or refused with its reason.
A YAML key is the flag without its dashes. Tests hold this page against the code, and the code
against the list of vLLM's flags."""


def page() -> str:
    """The whole page."""
    parts = [
        HEAD,
        "## Taken under vLLM's name, or shoal's own",
        "[SETTINGS.md](SETTINGS.md) tells what each does.",
        table(("group", "flags"), groups()),
        "## Taken under another name",
        table(("flag", "here"), renamed()),
        "## Short flags",
        table(("short", "long"), ((code(short), code(long)) for short, long in SHORT.items())),
        "## Taken, though it changes nothing",
        "A line at the start says so. Many of these vLLM itself has dropped.",
        table(("flags", "because"), by_reason(IDLE)),
        "## Refused",
        "The value in brackets, like none at all, asks for nothing and is taken.",
        table(("flags", "because"), by_reason(NOT_BUILT, values=True)),
        "## Environment variables",
        "Each that is set is named once at the start, never with its value.",
        table(("variable", "here"), variables()),
        "## Fields of requests",
        "[REQUESTS.md](REQUESTS.md) has those of both routes, with what is refused.",
    ]
    return "\n\n".join(parts) + "\n"


def table(head: tuple[str, str], rows: Iterable[tuple[str, str]]) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "|---|---|"]
    return "\n".join([*lines, *(f"| {left} | {right} |" for left, right in rows)])


def code(text: str) -> str:
    return f"`{text}`".replace("|", "\\|")


def flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def groups() -> Iterator[tuple[str, str]]:
    found: dict[str, list[str]] = {}
    for key in keys().values():
        found.setdefault(key.group, []).append(code(flag(key.name)))
    for group, flags in found.items():
        yield group, " ".join(flags)


def renamed() -> Iterator[tuple[str, str]]:
    for name, key in RENAMED.items():
        here = setting(flag(target(name)), False) if key.startswith("!") else flag(key)
        yield code(flag(name)), code(here)


def by_reason(foreign: Mapping[str, Foreign], *, values: bool = False) -> Iterator[tuple[str, str]]:
    found: dict[str, list[str]] = {}
    for name, meaning in foreign.items():
        shown = [str(off).lower() for off in meaning.off if off is not False]
        value = f" ({', '.join(shown)})" if values and shown else ""
        found.setdefault(meaning.why, []).append(code(flag(name)) + value)
    for why, flags in found.items():
        yield " ".join(flags), why.replace("|", "\\|")


def variables() -> Iterator[tuple[str, str]]:
    for variable, (key, _) in READ.items():
        yield code(variable), f"sets {code(flag(key))}"
    for variable, why in MEANINGS.items():
        yield code(variable), why
    for beginning, why in PATTERNS.items():
        yield code(f"{beginning}*"), why


def test_the_page_is_that_of_the_code() -> None:
    assert PAGE.read_text() == page(), f"{__doc__}"


if __name__ == "__main__":
    print(page(), end="")
