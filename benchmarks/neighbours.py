"""What other work on the machine costs the engine: its speed beside processes that only compute.

    python benchmarks/neighbours.py [--model DIR] [--rows 8] [--neighbours 0,1,2,4] [--json FILE]

In every round each number of neighbours has its turn, in this one process; medians are told. The
fair share is what the engine's threads get of the cores where all that want one get as much: with C
cores, T threads and N neighbours min(1, C / (T + N)) of its speed alone. Steps wait for their
slowest thread, so a scheduler that is fair leaves them less than that.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shoal import LLM, SamplingParams

ROOT = Path(__file__).resolve().parents[1]
SHAPE = ROOT / "benchmarks" / "shapes" / "qwen3-0.6b"
PROMPT_LEN = 32
SPIN = "while True: pass"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default=str(SHAPE), help="random weights where it has none")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--output-len", type=int, default=32)
    parser.add_argument("--neighbours", default="0,1,2,4")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    counts = [int(count) for count in chosen.neighbours.split(",")]
    cores = len(os.sched_getaffinity(0))
    seconds: dict[int, list[float]] = {count: [] for count in {0, *counts}}
    with neighbours(max(counts)) as others:
        llm = LLM(
            chosen.model,
            load_format=load_format(chosen.model),
            dtype="bfloat16",
            tokenizer=str(ROOT / "configs" / "tiny"),
        )
        generate(llm, chosen.rows, chosen.output_len)
        for _ in range(chosen.rounds):
            for count, took in seconds.items():
                for other in others[:count]:
                    os.kill(other, signal.SIGCONT)
                took.append(generate(llm, chosen.rows, chosen.output_len))
                for other in others[:count]:
                    os.kill(other, signal.SIGSTOP)
    alone, tokens = statistics.median(seconds[0]), chosen.rows * chosen.output_len
    found = []
    print("neighbours  tokens/s  of alone  fair share")
    for count in sorted(seconds):
        took = statistics.median(seconds[count])
        share = min(1.0, cores / (cores + count))
        found.append({"neighbours": count, "tokens_s": tokens / took, "share": alone / took})
        print(f"{count:10}  {tokens / took:8.1f}  {alone / took:8.0%}  {share:10.0%}")
    if chosen.json is not None:
        chosen.json.write_text(json.dumps({"command": sys.argv, "found": found}, indent=1) + "\n")


@contextmanager
def neighbours(count: int) -> Iterator[list[int]]:
    """So many processes that compute while they are not stopped, which they are at first."""
    line = [sys.executable, "-c", SPIN]
    processes = [subprocess.Popen(line) for _ in range(count)]
    try:
        for process in processes:
            process.send_signal(signal.SIGSTOP)
        yield [process.pid for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def load_format(model: str) -> str:
    return "auto" if any(Path(model).glob("*.safetensors")) else "dummy"


def generate(llm: LLM, rows: int, output_len: int) -> float:
    """Seconds for a batch of new prompts."""
    prompts = [
        {"prompt_token_ids": [random.randrange(1000) for _ in range(PROMPT_LEN)]}
        for _ in range(rows)
    ]
    params = SamplingParams(max_tokens=output_len, ignore_eos=True, temperature=0)
    begun = time.perf_counter()
    llm.generate(prompts, params, use_tqdm=False)
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
