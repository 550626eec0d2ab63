"""The driver of a peer that runs in a process of its own: a line of JSON in, a line out.

    in   {"prompts": [[token ids], ..], "output_len": N}
    out  {"arrivals": [[seconds after the line came, one a token], ..]}      or {"error": text}

The first line out says that the model is loaded. Standard library only.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace

Came = Callable[[int], None]
"""To be called with a prompt's number each time that a token of it has come."""

Generate = Callable[[list[list[int]], int, Came], None]
"""Runs all prompts at once, greedily, for so many tokens each, whatever they are."""


def main(load: Callable[[SimpleNamespace], Generate]) -> None:
    """Load with the options of the command line (`Launch.driver`), then answer until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # libraries print as they like
    options = SimpleNamespace(**json.loads(sys.argv[1]))
    begin = time.perf_counter()
    generate = load(options)
    print(json.dumps({"loaded_s": time.perf_counter() - begin}), file=answers)
    for line in sys.stdin:
        print(json.dumps(_answer(generate, json.loads(line))), file=answers)


def _answer(generate: Generate, asked: dict[str, object]) -> dict[str, object]:
    prompts, output_len = asked["prompts"], asked["output_len"]
    assert isinstance(prompts, list) and isinstance(output_len, int)
    arrivals: list[list[float]] = [[] for _ in prompts]
    begin = time.perf_counter()
    try:
        generate(prompts, output_len, lambda i: arrivals[i].append(time.perf_counter() - begin))
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {"arrivals": arrivals}
