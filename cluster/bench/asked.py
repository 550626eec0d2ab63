"""From the flags of `shoal bench serve` and `throughput` to what is to be done."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ...engine.errors import ConfigError
from .arrivals import Ramp, levels
from .datasets import Dataset
from .online import Plan
from .save import Saving, writable, writable_folder
from .slo import objectives
from .table import METRICS
from .talks import route
from .unread import refuse_unread

BACKENDS = {
    "openai": "completions",
    "vllm": "completions",
    "shoal": "completions",
    "openai-chat": "chat",
}
_SAMPLING = (
    *("temperature", "top_p", "top_k", "min_p", "frequency_penalty", "presence_penalty"),
    *("repetition_penalty", "logprobs"),
)


def plan_of(given: Mapping[str, Any]) -> Plan:
    """What `shoal bench serve` was asked, by the names of its options. Raises ConfigError."""
    path = route(_endpoint(given))
    return Plan(
        levels=levels(
            given["max_concurrency"], given["request_rate"], given["burstiness"], _ramp(given)
        ),
        dataset=dataset_of(given),
        endpoint=path,
        model=given["model"] or given["served_model_name"],
        vocab_size=_least("vocab_size", given, 2),
        tokenizer=given["tokenizer"],
        num_prompts=_least("num_prompts", given, 1),
        num_warmups=_least("num_warmups", given, 0),
        ignore_eos=given["ignore_eos"],
        sampling=_sampling(given, path),
        extra_body=_object(given["extra_body"]),
        percents=_percents(given["metric_percentiles"]),
        metrics=_metrics(given["percentile_metrics"]),
        objectives=objectives(given["goodput"]),
        quiet=given["disable_tqdm"],
        ready_timeout_s=given["ready_check_timeout_sec"],
        json_file=writable(given["json"], "--json"),
        report_file=writable(given["report"], "--report"),
        saving=_saving(given),
    )


def dataset_of(given: Mapping[str, Any]) -> Dataset:
    """The data set of the flags. Raises ConfigError."""
    name = given["dataset_name"]
    refuse_unread(given)
    return Dataset(
        name=name,
        path=Path(given["dataset_path"]) if given["dataset_path"] else None,
        range_ratio=given["random_range_ratio"],
        num_turns=given.get("num_turns", 1),
        think_s=given.get("think_time", 0.0),
        fixed_output_len=_fixed_output_len(name, given),
        shuffle=not given["disable_shuffle"],
        seed=given["seed"],
        **(_of_prefixes(given) if name == "prefix_repetition" else _drawn(given)),
    )


def _drawn(given: Mapping[str, Any]) -> dict[str, int]:
    """The shape of prompts that have one beginning, or none, in common."""
    input_len = _first(given["input_len"], 128)
    shared = _least("shared_prefix_len", given, 0) or 0
    if shared and shared >= input_len:
        raise ConfigError(
            f"--shared-prefix-len ({shared}) is part of --input-len ({input_len}) and cannot "
            "exceed it, nor fill it; --random-prefix-len comes in addition",
            "shared_prefix_len",
        )
    return {
        "input_len": input_len - shared,
        "output_len": _first(given["output_len"], 64),
        "prefix_len": given["random_prefix_len"] + shared,
    }


def _of_prefixes(given: Mapping[str, Any]) -> dict[str, int]:
    """The shape of prompts that begin with several prefixes in turn."""
    return {
        "input_len": _first(given["input_len"], given["prefix_repetition_suffix_len"]),
        "output_len": _first(given["output_len"], given["prefix_repetition_output_len"]),
        "prefix_len": given["prefix_repetition_prefix_len"],
        "num_prefixes": given["prefix_repetition_num_prefixes"],
    }


def _first(value: int | None, otherwise: int) -> int:
    return otherwise if value is None else value


def pairs(words: Iterable[str], flag: str) -> dict[str, str]:
    """`KEY=VALUE` words as a mapping. Raises ConfigError."""
    found = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise ConfigError(f"{flag} is {word!r}; expected KEY=VALUE", flag)
        found[key] = value
    return found


def _sampling(given: Mapping[str, Any], path: str) -> dict[str, Any]:
    """The fields of `_SAMPLING` that are given, as the route takes them."""
    wanted = {name: given[name] for name in _SAMPLING if given[name] is not None}
    if "logprobs" in wanted and path.endswith("/chat/completions"):
        # There `logprobs` is whether, `top_logprobs` how many.
        wanted |= {"logprobs": True, "top_logprobs": wanted["logprobs"]}
    return wanted


def _fixed_output_len(dataset: str, given: Mapping[str, Any]) -> int | None:
    """The length of all answers; None: each has its own. vLLM writes that as -1 too."""
    name = {"sharegpt": "sharegpt_output_len", "custom": "custom_output_len"}.get(dataset, "")
    if given.get(name) == -1:
        return None
    return (_least(name, given, 1) if name else None) or _least("output_len", given, 1)


def _ramp(given: Mapping[str, Any]) -> Ramp | None:
    strategy, start, end = (
        given[f"ramp_up_{part}"] for part in ("strategy", "start_rps", "end_rps")
    )
    if strategy is None and start is None and end is None:
        return None
    if None in (strategy, start, end):
        raise ConfigError(
            "--ramp-up-strategy, --ramp-up-start-rps and --ramp-up-end-rps go together",
            "ramp_up_strategy",
        )
    return Ramp(strategy=strategy, start=start, end=end)


def _endpoint(given: Mapping[str, Any]) -> str:
    backend = given["backend"]
    if backend is not None and backend not in BACKENDS:
        raise ConfigError(
            f"--backend must be one of {', '.join(BACKENDS)}; got {backend!r}", "backend"
        )
    return str(given["endpoint"] or BACKENDS[backend or "openai"])


def _least(name: str, given: Mapping[str, Any], low: int) -> int | None:
    value: int | None = given[name]
    if value is not None and value < low:
        flag = "--" + name.replace("_", "-")
        raise ConfigError(f"{flag} must be at least {low}, got {value}", name)
    return value


def _object(text: str | None) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ConfigError(f"--extra-body must be a JSON object, got {text!r}", "extra_body")
    return found


def _percents(text: str) -> tuple[float, ...]:
    try:
        found = tuple(sorted({float(part) for part in text.split(",")}))
    except ValueError:
        found = (-1.0,)
    if not all(0 <= percent <= 100 for percent in found):
        raise ConfigError(
            f"--metric-percentiles is {text!r}; expected numbers of 0 to 100 such as 50,90,99.9",
            "metric_percentiles",
        )
    return found


def _metrics(text: str) -> tuple[str, ...]:
    found = tuple(part.strip() for part in text.split(","))
    for name in found:
        if name not in METRICS:
            raise ConfigError(
                f"--percentile-metrics knows {', '.join(METRICS)}; got {name!r}",
                "percentile_metrics",
            )
    return found


def _saving(given: Mapping[str, Any]) -> Saving | None:
    if not (given["save_result"] or given["save_detailed"] or given["append_result"]):
        return None
    folder = writable_folder(given["result_dir"] or ".", "--result-dir")
    if given["result_filename"]:
        writable(str(folder / given["result_filename"]), "--result-filename")
    return Saving(
        folder=folder,
        filename=given["result_filename"],
        label=given["label"],
        detailed=given["save_detailed"],
        append=given["append_result"],
        metadata=pairs(given["metadata"], "--metadata"),
    )
