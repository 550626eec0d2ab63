"""What a comparison found, as tables in Markdown: the terminal's and the README's."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

HEAD = (
    "streams x prompt (shared)",
    "shoal tokens/s",
    "peer",
    "ratio",
    "shoal TTFT ms",
    "peer",
    "ratio",
    "share of the roof",
    "peer",
    "bound by",
    "idle before",
)


def report(found: dict[str, Any]) -> None:
    """Print a table a peer. Ratios above 1 are in shoal's favour, of times too."""
    if not found:
        print("nothing was measured yet")
        return
    roof = found["roof"]
    print(f"\n{found['machine']}, {found['shape']} in {found['dtype']}, {found['date']}")
    print(f"`{found['command']}`, shoal's kernels: {found['kernels']}")
    print(
        f"roof: {roof['bytes_per_s'] / 1e9:.1f} GB/s, {roof['flops_per_s'] / 1e12:.2f} TFLOP/s"
        " (a probe, best of a few)\n"
    )
    for name, entry in found["peers"].items():
        print(f"### {name} {entry.get('version', '')}, {entry['over']}")
        if entry.get("error"):
            print(f"not measured: {entry['error'].splitlines()[0]}")
        for start in entry.get("starts_s", ()):
            print(f"ready after {start['peer']:g} s, shoal after {start['shoal']:g} s")
        print()
        if entry["cells"]:
            table(entry["cells"])


def table(cells: list[dict[str, Any]]) -> None:
    """One peer's cells."""
    rows = [HEAD, *(row(cell) for cell in cells)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEAD))]
    for i, words in enumerate(rows):
        print("| " + " | ".join(w.ljust(n) for w, n in zip(words, widths, strict=True)) + " |")
        if i == 0:
            print("|" + "|".join("-" * (n + 2) for n in widths) + "|")
    print()


def lines(cells: list[dict[str, Any]]) -> list[str]:
    """The same as benchmarks/README.md has it, shorter: those without a shared prefix first."""

    def place(found: dict[str, Any]) -> tuple[int, ...]:
        cell = found["cell"]
        return bool(cell["shared"]), cell["input_len"], cell["streams"]

    return [line(found) for found in sorted(cells, key=place)]


def line(found: dict[str, Any]) -> str:
    cell, ours, theirs = found["cell"], found["shoal"], found["peer"]
    speeds = [side["output_tokens_per_s"] for side in (ours, theirs)]
    shares = [f"{100 * side['share_of_roof']:.0f} %" for side in (ours, theirs)]
    firsts = [f"{side['ttft_ms']:,.0f}" for side in (ours, theirs)]
    shared = f", {cell['shared']} shared" if cell["shared"] else ""
    words = (
        f"{cell['streams']}",
        f"{cell['input_len']:,}{shared}",
        f"{speeds[0]:.1f} tokens/s",
        f"{speeds[1]:.1f}",
        f"{speeds[0] / speeds[1]:.2f}",
        ", ".join(shares),
        " and ".join(firsts),
        str(found["bound"]),
    )
    return f"| {' | '.join(words)} |"


def row(found: dict[str, Any]) -> tuple[str, ...]:
    cell, ours, theirs = found["cell"], found["shoal"], found["peer"]
    shared = f" ({cell['shared']})" if cell["shared"] else ""
    return (
        f"{cell['streams']} x {cell['input_len']}{shared}",
        f"{ours['output_tokens_per_s']:.1f}",
        f"{theirs['output_tokens_per_s']:.1f}",
        f"{ours['output_tokens_per_s'] / theirs['output_tokens_per_s']:.2f}",
        f"{ours['ttft_ms']:,.0f}",
        f"{theirs['ttft_ms']:,.0f}",
        f"{theirs['ttft_ms'] / ours['ttft_ms']:.2f}",
        f"{ours['share_of_roof']:.0%}",
        f"{theirs['share_of_roof']:.0%}",
        found["bound"],
        f"{found['idle_before']:.0%}",
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--lines", action="store_true", help="the rows of benchmarks/README.md")
    asked = parser.parse_args()
    read = json.loads(asked.file.read_text())
    if asked.lines:
        for name, entry in read["peers"].items():
            print("\n".join((f"\n{name}", *lines(entry["cells"]))))
    else:
        report(read)
