"""Decode and prefill on a GPU, as shares of what its memory and its tensor cores allow.

    python benchmarks/gpu.py [--shapes llama-3.1-8b,qwen3-0.6b] [--batches 1,8,64,256]
        [--contexts 1024,8192,32768] [--side-by-side] [--deterministic] [--json FILE]

Random weights in the shape of a real model, bfloat16, greedy. A cell is one batch decoding
`--steps` tokens behind prompts of one length: the time of a step is the difference that these make,
sampling and host included. The prompts are in the prefix cache then, but for a token each, so that
all sequences begin to decode together; otherwise the first would be done while the last are still
read. For that contexts are multiples of a KV block (256 tokens for FlashAttention 2). `gap`: from a
step's last draw to the next one's first layer, by the device's own clock: the host being late, and
the copies of that step's rows. Prefill: one new prompt alone, by its time to the first token. Best
of `--rounds`. A cell that cannot be measured says why, its engine is made anew for the next, and
what was found so far is in the JSON after each.
`--side-by-side`: transformers' generate with a static cache, compiled, in the same process, and the
same cells with each attention that is installed and that `auto` does not mean already. Needs a CUDA
device.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from gpu_arithmetic import CHIPS, Chip, Model, decode_floor_s, prefill_flops, read_model
from shoal import LLM, SamplingParams
from shoal.engine.config import from_keys
from shoal.engine.local import LocalExecutor
from shoal.kernels.gpu import choice
from shoal.kernels.gpu.with_flash_attn import is_third

SHAPES = Path(__file__).parent / "shapes"
TOKENIZER = Path(__file__).parents[1] / "configs" / "tiny"
GIB = 1 << 30
ROOM = 0.85
"""Of a GPU's memory, for weights and cache."""


@dataclass(frozen=True)
class Cell:
    """One measurement; times in seconds, shares of 1. `gap_s`: None where it is not told."""

    who: str
    shape: str
    batch: int
    context: int
    step_s: float
    decode_share: float
    gap_s: float | None
    prefill_s: float
    prefill_share: float


@dataclass(frozen=True)
class Missing:
    """A cell that could not be measured, and why."""

    who: str
    shape: str
    batch: int
    context: int
    reason: str


def chip_here() -> Chip:
    """The GPU's datasheet. Ends the program where there is no GPU, or an unknown one."""
    if not torch.cuda.is_available():
        sys.exit("gpu.py measures a CUDA device, and torch sees none; gpu_compile.py needs none")
    name = torch.cuda.get_device_name()
    chip = CHIPS.get(name.removeprefix("NVIDIA "))
    if chip is None:
        sys.exit(
            f"{name} is not in gpu_arithmetic.CHIPS ({', '.join(CHIPS)}): add its bytes a second "
            f"and its FLOP/s, from its datasheet"
        )
    return chip


def misfit(model: Model, batch: int, context: int, steps: int) -> str:
    """Why weights and cache have no room in `ROOM` of the GPU's memory; empty where they have."""
    weights = (model.layers * model.layer_weights + 2 * model.head_weights) * model.itemsize
    need = weights + batch * (context + steps) * model.kv_bytes
    room = ROOM * torch.cuda.get_device_properties(0).total_memory
    return "" if need < room else f"does not fit: {need / GIB:.1f} GiB of {room / GIB:.1f} GiB"


_SEEDS = count(1)


def prompts(batch: int, context: int, vocab: int, seed: int = 0) -> list[dict[str, Any]]:
    """Random prompts of token ids, no two alike; the same for the same numbers."""
    random = torch.Generator().manual_seed(context + seed * 1_000_003)
    ids = torch.randint(10, vocab, (batch, context), generator=random)
    return [{"prompt_token_ids": row} for row in ids.tolist()]


@dataclass
class Ours:
    """shoal's engine, as a user makes it, and the executor behind it.

    `uncached`: of the last call's prompts, the most tokens that one had to compute.
    """

    llm: LLM
    executor: LocalExecutor
    uncached: int = 0

    def run_s(self, inputs: list[dict[str, Any]], tokens: int) -> float:
        """Seconds of one call."""
        params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
        began = time.perf_counter()
        found = self.llm.generate(inputs, params, use_tqdm=False)
        took_s = time.perf_counter() - began
        self.uncached = max(
            len(one["prompt_token_ids"]) - (out.num_cached_tokens or 0)
            for one, out in zip(inputs, found, strict=True)
        )
        return took_s

    def read_anew(self) -> bool:
        """Whether the last call computed more of a prompt than the token that it must."""
        return self.uncached > 1

    def gap_s(self) -> float | None:
        """The device's idle time between steps, over the last ones."""
        (gaps,) = self.executor.call("gaps")
        return statistics.median(gaps) if gaps else None

    def close(self) -> None:
        """Free its memory."""
        self.llm.close()


def ours(model: str, options: argparse.Namespace, backend: str, **keys: Any) -> Ours:
    """An engine of random weights with one of the attentions. FlashAttention 2 reads blocks of 256
    tokens.
    """
    in_large_blocks = backend == "FLASH_ATTN" and not is_third(torch.device("cuda"), 16)
    keys = {
        "model": model,
        "tokenizer": str(TOKENIZER),
        "load_format": "dummy",
        "dtype": "bfloat16",
        "max_model_len": max(options.contexts) + options.steps + 8,
        "max_num_seqs": max(options.batches),
        "max_num_batched_tokens": 8192,
        "attention_backend": backend,
        "block_size": 256 if in_large_blocks else 16,
        "deterministic": options.deterministic and backend == "auto",
    } | keys
    executor = LocalExecutor(from_keys(keys))
    return Ours(LLM(executor=executor, **keys), executor)


def measure(
    side: Any, who: str, folder: Path, batch: int, context: int, options: argparse.Namespace
) -> Cell:
    """Decode by the difference of two lengths, which leaves the prompt out; best of rounds."""
    model, chip = read_model(folder), options.chip
    inputs = prompts(batch, context + 1, model.vocab)
    for _ in range(2):  # fills the prefix cache; then all decode together, and graphs are recorded
        side.run_s(inputs, 4)
    few = min(side.run_s(inputs, 4) for _ in range(options.rounds))
    many = min(side.run_s(inputs, 4 + options.steps) for _ in range(options.rounds))
    if side.read_anew():
        raise RuntimeError(
            f"{side.uncached} tokens of a prompt were computed anew, where 1 has to be: the cache "
            f"does not hold {batch} prompts of {context}, or {context} is no multiple of its block"
        )
    step_s = (many - few) / options.steps
    gap_s = side.gap_s()
    news = [prompts(1, context, model.vocab, next(_SEEDS)) for _ in range(options.rounds)]
    prefill_s = min(side.run_s(new, 1) for new in news)
    return Cell(
        who,
        folder.name,
        batch,
        context,
        step_s,
        decode_floor_s(model, batch, context + options.steps // 2, chip) / step_s,
        gap_s,
        prefill_s,
        prefill_flops(model, 1, context) / prefill_s / chip.flops,
    )


class Theirs:
    """transformers' generate with a static cache, whose decode it compiles on a GPU."""

    def __init__(self, folder: Path, device: str = "cuda") -> None:
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.from_pretrained(folder)
        self.device = device
        with torch.device(device):
            self.model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()

    def run_s(self, inputs: list[dict[str, Any]], tokens: int) -> float:
        """Seconds of one call; the ids that come back are read, so the device is done."""
        ids = torch.tensor([entry["prompt_token_ids"] for entry in inputs], device=self.device)
        began = time.perf_counter()
        with torch.inference_mode():
            found = self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                do_sample=False,
                cache_implementation="static",
            )
        assert len(found.tolist()[0]) == ids.shape[1] + tokens
        return time.perf_counter() - began

    def read_anew(self) -> bool:
        """It reads all prompts at once, before any decodes."""
        return False

    def gap_s(self) -> None:
        """It does not tell."""
        return None

    def close(self) -> None:
        """Free its memory, and what was compiled over it."""
        del self.model
        torch.compiler.reset()


def backends(options: argparse.Namespace, model: Model) -> list[str]:
    """Whose attention is measured: the table's choice, and on request each that is installed."""
    if not options.side_by_side:
        return ["auto"]
    given = choice.Model(torch.bfloat16, (model.head_size,), 16)
    meant, _ = choice.choose_attention(
        "auto", choice.gpu(torch.device("cuda", 0)), given, exact=options.deterministic
    )
    there = {
        "triton": meant != "triton" or options.deterministic,
        "FLASH_ATTN": not all(map(choice.missing, ("flash_attn", "flash_attn_interface"))),
        "FLASHINFER": not choice.missing("flashinfer"),
    }
    return ["auto", *(name for name, measured in there.items() if measured)]


def show(cell: Cell | Missing) -> None:
    """One line of the table."""
    where = f"| {cell.who} | {cell.shape} | {cell.batch} | {cell.context} |"
    if isinstance(cell, Missing):
        print(f"{where} {cell.reason} |", flush=True)
        return
    gap = "-" if cell.gap_s is None else f"{cell.gap_s * 1e6:.0f}"
    print(
        f"{where} {cell.step_s * 1e3:.3f} | {cell.decode_share:.0%} | {gap} | "
        f"{cell.prefill_s * 1e3:.1f} | {cell.prefill_share:.0%} |",
        flush=True,
    )


def measured(
    who: str,
    make: Callable[[], Any],
    folder: Path,
    sizes: list[tuple[int, int]],
    options: argparse.Namespace,
) -> Iterator[Cell | Missing]:
    """Each cell, or why there is none. An engine that failed is dropped; one that cannot be made is
    not tried again.
    """
    model, side, refused = read_model(folder), None, ""
    for batch, context in sizes:
        reason = refused or misfit(model, batch, context, options.steps)
        if not reason:
            try:
                side = side or make()
                yield measure(side, who, folder, batch, context, options)
                continue
            except Exception as error:  # out of memory, refused, broken: the others can be measured
                reason = " ".join(f"{type(error).__name__}: {error}".split())
            refused = "" if side else reason
            drop(side)
            side = None
        yield Missing(who, folder.name, batch, context, reason)
    drop(side)


def drop(side: Any) -> None:
    """Close an engine, where there is one that can be, and give its memory back."""
    with suppress(Exception):
        if side is not None:
            side.close()
    del side
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def parse() -> argparse.Namespace:
    """The command line, lists parted by commas."""

    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", default="llama-3.1-8b,qwen3-0.6b")
    parser.add_argument("--batches", type=numbers, default=[1, 8, 64, 256])
    parser.add_argument("--contexts", type=numbers, default=[1024, 8192, 32768])
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side-by-side", action="store_true")
    parser.add_argument("--deterministic", action="store_true")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> int:
    options = parse()
    options.chip = chip_here()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; limits of {options.chip}")
    print("| who | shape | batch | context | step ms | of memory | gap µs | prefill ms | of peak |")
    print("|---|---|---|---|---|---|---|---|---|")
    cells: list[Cell | Missing] = []
    for shape in options.shapes.split(","):
        folder = SHAPES / shape
        model = read_model(folder)
        sizes = [(batch, context) for batch in options.batches for context in options.contexts]
        makers: list[tuple[str, Callable[[], Any]]] = [
            (f"shoal {name}", partial(ours, str(folder), options, name))
            for name in backends(options, model)
        ]
        if options.side_by_side:
            makers.append(("transformers", partial(Theirs, folder)))
        for who, make in makers:
            for cell in measured(who, make, folder, sizes, options):
                show(cell)
                cells.append(cell)
                if options.json:
                    write(options.json, cells, options.chip)
    return 0


def write(file: Path, cells: list[Cell | Missing], chip: Chip) -> None:
    """What was found so far."""
    facts = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}
    facts |= {"command": " ".join(sys.argv), "chip": asdict(chip)}
    facts["cells"] = [asdict(cell) for cell in cells]
    file.write_text(json.dumps(facts, indent=1, allow_nan=False) + "\n")


if __name__ == "__main__":
    sys.exit(main())
