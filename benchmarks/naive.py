"""`LLM.generate` against transformers one by one and in padded batches: the comparison with a loop.

    python benchmarks/naive.py [--model shoal-tiny] [--num-prompts 1000] [--sample 40] [--json FILE]

Prompts have lengths as ShareGPT's, cut to --longest; each is answered with --output-len tokens,
whatever they are, greedily, by the same weights in the same dtype on the same threads. shoal runs
all of them. The slow sides run a sample (`--sample`, prompts; of batches, as many as hold that many
and at least two) drawn without regard to length, and their minutes for all prompts are estimated
from it; --sample 0 runs all. Sides take turns in three rounds, each with a third of the prompts.

Utilisation is given three ways: tokens that were wanted of all that were computed (padding is the
rest), sequences a step, and the share of the machine's arithmetic (a probe) that wanted tokens are.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import books
import memory
from shoal.cluster.bench.lengths import Lengths
from shoal.cluster.config import bundled_model

sys.path.append(str(Path(__file__).resolve().parent / "peers"))
from roof import Roof, Shape, probe

ROUNDS = 3
BATCHES = (8, 32)
CACHE_TOKENS = 65_536


@dataclass
class Tally:
    """What a side has run so far."""

    prompts: int = 0
    seconds: float = 0.0
    wanted: int = 0
    computed: int = 0
    steps: int = 0

    def add(self, prompts: list[list[int]], output_len: int, steps: int, seconds: float) -> None:
        """Prompts padded to the longest of them, and their answers."""
        self.prompts += len(prompts)
        self.seconds += seconds
        self.wanted += sum(len(prompt) + output_len for prompt in prompts)
        self.computed += len(prompts) * (max(map(len, prompts)) + output_len)
        self.steps += steps


def made(num: int, longest: int, vocab_size: int) -> list[list[int]]:
    """Prompts of random tokens, of lengths as ShareGPT's."""
    random = Random(0)
    lengths = [min(one.input, longest) for one in books.chats(num)]
    return [[random.randrange(16, vocab_size) for _ in range(length)] for length in lengths]


def shoal_side(model: Path, asked: argparse.Namespace) -> tuple[Any, Callable[..., None]]:
    """shoal's LLM, and what runs prompts on it."""
    from shoal import LLM, SamplingParams

    llm = LLM(str(model), dtype=asked.dtype, threads=asked.threads, enable_prefix_caching=False)
    params = SamplingParams(temperature=0.0, max_tokens=asked.output_len, ignore_eos=True)

    def run(prompts: list[list[int]], tally: Tally) -> None:
        begin = time.perf_counter()
        answers = llm.generate(prompts, params, use_tqdm=False)
        taken = time.perf_counter() - begin
        assert all(len(a.outputs[0].token_ids) == asked.output_len for a in answers)
        tally.add(prompts, asked.output_len, 0, taken)
        tally.computed = tally.wanted

    return llm, run


def transformers_side(model: Path, asked: argparse.Namespace) -> Callable[..., None]:
    """What runs prompts in batches of a size by transformers' `generate`."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    torch.set_num_threads(asked.threads)
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, asked.dtype)).eval()
    config = GenerationConfig(
        max_new_tokens=asked.output_len, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    loaded.generation_config = config  # an end of its own would end answers early

    def run(prompts: list[list[int]], tally: Tally) -> None:
        begin = time.perf_counter()
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        with torch.inference_mode():
            out = loaded.generate(ids, attention_mask=mask, generation_config=config)
        taken = time.perf_counter() - begin
        assert out.shape[1] == width + asked.output_len
        tally.add(prompts, asked.output_len, asked.output_len, taken)

    return run


def sampled(prompts: list[list[int]], size: int, sample: int) -> list[list[list[int]]]:
    """Batches of `size` that hold about `sample` prompts, all of them for 0."""
    batches = [prompts[i : i + size] for i in range(0, len(prompts), size)]
    if not sample:
        return batches
    random = Random(1)
    return random.sample(batches, min(len(batches), max(ROUNDS, -(-sample // size))))


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """All sides in turn; figures by side."""
    model = Path(asked.model) if asked.model != "shoal-tiny" else bundled_model()
    shape = Shape.read(model)
    vocab_size = json.loads((model / "config.json").read_text())["vocab_size"]
    prompts = made(asked.num_prompts, asked.longest, vocab_size)
    roofs = [probe("cpu", asked.threads, asked.dtype)]
    llm, ours = shoal_side(model, asked)
    theirs = transformers_side(model, asked)
    ours(prompts[:4], Tally())
    theirs(prompts[:2], Tally())
    work = {1: sampled(prompts, 1, asked.sample)}
    work |= {size: sampled(prompts, size, asked.sample) for size in BATCHES}
    tallies = {"shoal": Tally()} | {size: Tally() for size in work}
    before = llm._engine.load().counters or {}
    for number in range(ROUNDS):
        print(f"round {number + 1} of {ROUNDS}", file=sys.stderr)
        ours(prompts[number::ROUNDS], tallies["shoal"])
        for size, batches in work.items():
            for batch in batches[number::ROUNDS]:
                theirs(batch, tallies[size])
    counters = llm._engine.load().counters or {}
    tallies["shoal"].steps = int(counters["steps"] - before.get("steps", 0))
    llm.close()
    # What another program took from one probe, the other may have had.
    roofs.append(probe("cpu", asked.threads, asked.dtype))
    roof = max(roofs, key=lambda one: one.flops_per_s)
    names = {"shoal": "LLM.generate", 1: "transformers, one by one"}
    names |= {size: f"transformers, padded batches of {size}" for size in BATCHES}
    sides = {names[key]: figures(tally, asked, shape, roof) for key, tally in tallies.items()}
    for side in sides.values():
        side["ratio"] = side["minutes"] / sides["LLM.generate"]["minutes"]
    probes = [vars(one) for one in roofs]
    return {"sides": sides, "fit": fit(prompts, asked), "roof": vars(roof), "probes": probes}


def figures(tally: Tally, asked: argparse.Namespace, shape: Shape, roof: Roof) -> dict[str, Any]:
    """One side: its minutes for all prompts, estimated where it ran a sample."""
    scale = asked.num_prompts / tally.prompts
    output = tally.prompts * asked.output_len
    head = shape.weights - shape.layer_weights
    wanted_flops = 2 * (shape.layer_weights * tally.wanted + head * output)
    return {
        "prompts_run": tally.prompts,
        "estimated": tally.prompts < asked.num_prompts,
        "minutes": tally.seconds * scale / 60,
        "output_tokens_per_s": output / tally.seconds,
        "wanted_of_computed": tally.wanted / tally.computed,
        "sequences_a_step": output / tally.steps if tally.steps else None,
        "share_of_arithmetic": wanted_flops / tally.seconds / roof.flops_per_s,
    }


def fit(prompts: list[list[int]], asked: argparse.Namespace) -> dict[str, float]:
    """How many of these sequences a cache of so many tokens holds at once, paged and not."""
    lengths = [Lengths(len(prompt), asked.output_len) for prompt in prompts]
    # Few of them leave room: as often again as fills it several times.
    lengths *= -(-4 * CACHE_TOKENS // sum(map(sum, lengths)))
    longest = 1 << (asked.longest + asked.output_len - 1).bit_length()
    paged = memory.watched(lengths, CACHE_TOKENS, 32)
    whole = memory.watched(lengths, CACHE_TOKENS, longest)
    padded = sum(max(map(sum, lengths[i : i + 32])) for i in range(0, len(lengths), 32)) / -(
        -len(lengths) // 32
    )
    return {
        "cache_tokens": CACHE_TOKENS,
        "paged": paged["at_once"],
        f"contiguous, {longest} each": whole["at_once"],
        "padded to the longest of 32": CACHE_TOKENS / padded,
    }


def show(found: dict[str, Any], asked: argparse.Namespace) -> None:
    """Print the tables."""
    print(f"{asked.num_prompts:,} prompts, {asked.output_len} tokens out, {asked.dtype}")
    print(f"{'':37}minutes  ratio  tokens/s  wanted of computed  a step  of arithmetic")
    for name, one in found["sides"].items():
        step = "-" if one["sequences_a_step"] is None else f"{one['sequences_a_step']:.1f}"
        print(
            f"{name:37}{one['minutes']:7.2f}{one['ratio']:7.1f}{one['output_tokens_per_s']:10.0f}"
            f"{one['wanted_of_computed']:20.0%}{step:>8}{one['share_of_arithmetic']:15.1%}"
            + (f"   (estimated from {one['prompts_run']})" if one["estimated"] else "")
        )
    cache = found["fit"]
    print(f"sequences at once in the room of {cache['cache_tokens']:,} tokens:")
    for name, value in list(cache.items())[1:]:
        print(f"  {name}: {value:.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="shoal-tiny", help="shoal-tiny or a folder")
    parser.add_argument("--num-prompts", type=int, default=1000, metavar="N")
    parser.add_argument("--output-len", type=int, default=100, metavar="N")
    parser.add_argument("--longest", type=int, default=924, metavar="N", help="prompt tokens")
    parser.add_argument("--sample", type=int, default=40, metavar="N")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path, metavar="FILE")
    asked = parser.parse_args()
    found = measure(asked)
    show(found, asked)
    if asked.json is not None:
        command = " ".join(["python", "benchmarks/naive.py", *sys.argv[1:]])
        head = {"command": command, "threads": asked.threads, "dtype": asked.dtype}
        asked.json.write_text(json.dumps(head | found, indent=1) + "\n")


if __name__ == "__main__":
    main()
