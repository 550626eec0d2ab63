"""How much of the KV cache holds live tokens, paged and contiguous, under a mix as ShareGPT's.

    python benchmarks/memory.py [--requests 2000] [--cache-tokens 100000] [--json FILE]

The scheduler and the KV books are shoal's own; tokens are made up, one a step. All requests wait at
once, so that the cache is full; only steps in which some still wait are counted. A contiguous
cache is the same books with blocks of the whole context; one that knew each length beforehand, and
one that rounds it up to a power of two, are computed from the same lengths.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import books
from shoal.cluster.bench.lengths import Lengths


def watched(lengths: list[Lengths], cache_tokens: int, block_size: int) -> dict[str, Any]:
    """Run all requests; the share of the held blocks' room in which live tokens are."""
    own = books.scheduler(cache_tokens, block_size)
    books.add(own, lengths)
    live = held = room = running = steps = 0
    while own.unfinished:
        plan = own.schedule()
        assert plan is not None
        if own.num_waiting:
            live += books.live_tokens(own)
            held += books.held_blocks(own) * block_size
            room += cache_tokens
            running += own.num_running
            steps += 1
        own.commit(books.result(plan))
    own.verify()
    return {
        "block_size": block_size,
        "live_of_held": live / held,
        "live_of_cache": live / room,
        "at_once": running / steps,
        "steps": steps,
        "preemptions": own.counters.preemptions,
    }


def reserved(
    lengths: list[Lengths], cache_tokens: int, room: Callable[[Lengths], int]
) -> dict[str, Any]:
    """A cache that gives each sequence `room` tokens from its first step to its last."""
    live = sum(one.output * (one.input + (one.output - 1) / 2) for one in lengths)
    held = sum(one.output * room(one) for one in lengths)
    steps = sum(one.output for one in lengths)
    return {
        "live_of_held": live / held,
        "live_of_cache": live / held,
        "at_once": cache_tokens * steps / held,
    }


def power_of_two(length: int) -> int:
    """The least power of two that is not below."""
    return 1 << (length - 1).bit_length()


def measure(num: int, cache_tokens: int) -> dict[str, Any]:
    """Every kind of cache, by its name."""
    lengths = books.chats(num)
    found: dict[str, Any] = {
        f"paged, blocks of {size}": watched(lengths, cache_tokens, size)
        for size in (8, 16, 32, 64, 128)
    }
    found[f"contiguous, {books.CONTEXT} a sequence"] = watched(lengths, cache_tokens, books.CONTEXT)
    found["contiguous, the length rounded up to a power of two"] = reserved(
        lengths, cache_tokens, lambda one: one.input + power_of_two(one.output)
    )
    found["contiguous, the length known beforehand"] = reserved(
        lengths, cache_tokens, lambda one: sum(one)
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=2000, metavar="N")
    parser.add_argument("--cache-tokens", type=int, default=100_000, metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE")
    asked = parser.parse_args()
    found = measure(asked.requests, asked.cache_tokens)
    print(
        f"a cache of {asked.cache_tokens:,} tokens, {asked.requests:,} chats, all waiting at once"
    )
    print(f"{'':53}live of held  live of all  sequences at once  preemptions")
    for name, one in found.items():
        print(
            f"{name:53}{one['live_of_held']:12.1%}{one['live_of_cache']:13.1%}"
            f"{one['at_once']:19.1f}{one.get('preemptions', '-'):>13}"
        )
    if asked.json is not None:
        command = " ".join(["python", "benchmarks/memory.py", *sys.argv[1:]])
        head = {"command": command, "cache_tokens": asked.cache_tokens, "requests": asked.requests}
        asked.json.write_text(json.dumps(head | {"caches": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
