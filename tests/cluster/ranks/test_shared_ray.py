"""Engines of ranks in one script: they share a Ray, no interrupt reaches their ranks, and after the
last one's end a second Ray starts in the same process: Ray keeps some of what it read before."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import os, signal, sys, threading
import ray
from shoal import LLM, SamplingParams

def engine():
    return LLM(sys.argv[1], tensor_parallel_size=2, max_model_len=64, num_gpu_blocks_override=40)

def say(llm, count=1):
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    return llm.generate(["The capital of France is"] * count, params, use_tqdm=False)[0].text

first, second = engine(), engine()
text = say(first)
assert say(second) == text
first.close()
print("one is closed:", say(second) == text, flush=True)

threading.Timer(0.3, os.killpg, (os.getpgid(0), signal.SIGINT)).start()
try:
    say(second, 20000)
except KeyboardInterrupt:
    print("interrupted:", say(second) == text, flush=True)
second.close()
print("Ray is there:", ray.is_initialized(), flush=True)
third = engine()  # left to the end of the script
print("another one:", say(third) == text, flush=True)
"""


def test_an_engine_outlives_its_neighbour_and_an_interrupt(tiny_model: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tiny_model)],
        capture_output=True,
        text=True,
        timeout=280,
        start_new_session=True,
    )
    said = done.stdout.splitlines()
    assert said[:2] == ["one is closed: True", "interrupted: True"], done.stderr
    assert said[2:] == ["Ray is there: False", "another one: True"], done.stderr
    assert "ended without a word" not in done.stderr
