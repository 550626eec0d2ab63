"""`shoal bench latency` and `throughput`: the engine in this process, without a server."""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from ...engine.config import engine_keys
from ...engine.errors import ConfigError
from ..config import ServeConfig
from ..flags import parse
from ..resolve import configure
from ..settings import target
from .asked import dataset_of
from .figures import percentile
from .save import writable, write
from .talks import Turn
from .vocabulary import counter

LATENCY_PERCENTS = (10, 25, 50, 75, 90, 99)


def engine_of(args: Sequence[str], **defaults: object) -> dict[str, Any]:
    """The engine's keys from the flags of `shoal serve`; what they leave open is as in `defaults`.

    Raises ConfigError, also for a flag that is the server's alone.
    """
    line = parse(args)
    given = {target(raw) for raw in line.settings}
    for raw in line.settings:
        if target(raw) not in engine_keys() and target(raw) in ServeConfig.model_fields:
            raise ConfigError(f"{raw} is the server's, and here none is started; remove it", raw)
    (model,) = configure(args).models
    keys = dataclasses.asdict(model.engine)
    return keys | {name: value for name, value in defaults.items() if name not in given}


def latency(keys: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Time whole batches, one after the other; prefixes are not cached unless asked for."""
    from ...engine.beam_search import BeamSearchParams
    from ...engine.llm import LLM
    from ...engine.request import SamplingParams

    for name in ("input_len", "output_len", "batch_size", "n", "num_iters"):
        _at_least(name, given[name], 1)
    file = writable(given["output_json"], "--output-json")
    with LLM(**keys) as llm:
        random = Random(0)
        size = llm.capacity.vocab_size
        prompts = [
            [random.randrange(size) for _ in range(given["input_len"])]
            for _ in range(given["batch_size"])
        ]
        params = SamplingParams(
            n=given["n"],
            temperature=1.0,
            ignore_eos=True,
            max_tokens=given["output_len"],
            detokenize=not given["disable_detokenize"],
        )
        beams = BeamSearchParams(
            beam_width=given["n"], max_tokens=given["output_len"], ignore_eos=True
        )

        def batch() -> float:
            begin = time.perf_counter()
            if given["use_beam_search"]:
                llm.beam_search(prompts, beams)
            else:
                llm.generate(prompts, params, use_tqdm=False)
            return time.perf_counter() - begin

        taken = _rounds(batch, given)
    found = _latencies(taken, given)
    _print(
        "seconds a batch",
        [("mean", found["avg_latency"]), ("standard deviation", found["std_latency"])]
        + [(f"p{percent}", value) for percent, value in found["percentiles"].items()]
        + [("output tokens/s", found["output_tokens_per_s"])],
    )
    _keep(file, found)


def _rounds(batch: Callable[[], float], given: Mapping[str, Any]) -> list[float]:
    quiet, console = given["disable_tqdm"], Console(stderr=True)
    hidden = quiet or not console.is_terminal
    for _ in track(range(given["num_iters_warmup"]), "warm-up", console=console, disable=hidden):
        batch()
    counted = track(range(given["num_iters"]), "rounds", console=console, disable=hidden)
    return [batch() for _ in counted]


def _latencies(taken: list[float], given: Mapping[str, Any]) -> dict[str, Any]:
    """The figures, those that vLLM has under its names."""
    ordered = sorted(taken)
    mean = statistics.fmean(taken)
    output = given["batch_size"] * given["n"] * given["output_len"]
    return {
        "avg_latency": mean,
        "std_latency": statistics.pstdev(taken),
        "latencies": taken,
        "percentiles": {str(p): percentile(ordered, p) for p in LATENCY_PERCENTS},
        "output_tokens_per_s": output / mean,
        "asked": {name: given[name] for name in ("input_len", "output_len", "batch_size", "n")},
    }


def throughput(keys: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Time all prompts of a data set, given to the engine at once."""
    from ...engine.llm import LLM
    from ...engine.request import SamplingParams

    dataset = dataset_of(given)
    for name, least in (("num_prompts", 1), ("n", 1), ("num_warmups", 0)):
        _at_least(name, given[name], least)
    if dataset.name == "multi_turn":
        raise ConfigError(
            "a chat's next turn waits for an answer: `shoal bench serve` measures multi_turn",
            "dataset_name",
        )
    file = writable(given["output_json"], "--output-json")
    with LLM(**keys) as llm:
        count = counter(str(keys["tokenizer"] or keys["model"])) if dataset.path else None
        size = llm.capacity.vocab_size

        def asked(num: int, stream: str, taken: int = 0) -> tuple[list[Any], list[SamplingParams]]:
            made = dataset.conversations(num, size, stream, count, taken=taken)
            turns = [conversation.turns[0] for conversation in made]
            params = [
                SamplingParams(
                    n=given["n"],
                    temperature=given["temperature"],
                    ignore_eos=True,
                    max_tokens=turn.output_len,
                    detokenize=not given["disable_detokenize"],
                )
                for turn in turns
            ]
            return _prompts(turns), params

        num, warmups = given["num_prompts"], given["num_warmups"]
        if warmups:
            llm.generate(*asked(warmups, "warm-up", taken=num), use_tqdm=False)
        prompts, params = asked(num, "throughput")
        begin = time.perf_counter()
        answers = llm.generate(prompts, params, use_tqdm=not given["disable_tqdm"])
        elapsed = time.perf_counter() - begin
    prompt = sum(len(answer.prompt_token_ids) for answer in answers)
    output = sum(len(one.token_ids) for answer in answers for one in answer.outputs)
    found = {
        "elapsed_time": elapsed,
        "num_requests": len(answers),
        "total_num_tokens": prompt + output,
        "prompt_tokens": prompt,
        "output_tokens": output,
        "requests_per_second": len(answers) / elapsed,
        "tokens_per_second": (prompt + output) / elapsed,
        "output_tokens_per_second": output / elapsed,
    }
    print(
        f"Throughput: {found['requests_per_second']:.2f} requests/s, "
        f"{found['tokens_per_second']:.2f} total tokens/s, "
        f"{found['output_tokens_per_second']:.2f} output tokens/s"
    )
    print(f"Total num prompt tokens:  {prompt}")
    print(f"Total num output tokens:  {output}")
    _keep(file, found)


def _prompts(turns: Sequence[Turn]) -> list[Any]:
    return [turn.text if turn.text is not None else list(turn.ids) for turn in turns]


def _at_least(name: str, value: int, low: int) -> None:
    if value < low:
        flag = "--" + name.replace("_", "-")
        raise ConfigError(f"{flag} must be at least {low}, got {value}", name)


def _print(title: str, rows: Sequence[tuple[str, float | None]]) -> None:
    drawn = Table(header_style="bold")
    drawn.add_column(title)
    drawn.add_column("", justify="right")
    for label, value in rows:
        drawn.add_row(label, "-" if value is None else f"{value:,.4g}")
    Console().print(drawn)


def _keep(file: Path | None, found: Mapping[str, Any]) -> None:
    if file is not None:
        write(file, json.dumps(found, indent=4), "--output-json")
