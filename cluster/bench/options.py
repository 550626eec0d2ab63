"""The flags of `shoal bench serve`, `latency` and `throughput`, under vLLM's names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ...engine.errors import ConfigError


class Option(NamedTuple):
    """A flag: its other spellings, the type of its value, what help says.

    `several`: it takes words up to the next flag, or is repeated.
    """

    name: str
    kind: Any
    default: Any
    help: str
    panel: str
    also: tuple[str, ...] = ()
    several: bool = False

    @property
    def flag(self) -> str:
        """With dashes."""
        return "--" + self.name.replace("_", "-")


SERVER, LOAD, PROMPTS, REQUEST, OUTPUT = "Server", "Load", "Prompts", "Requests", "Output"

DATA = (
    Option(
        "dataset_name",
        str,
        "random",
        "random, sharegpt, custom, prefix_repetition or multi_turn.",
        PROMPTS,
    ),
    Option("dataset_path", str, None, "File of sharegpt, custom or multi_turn.", PROMPTS),
    Option("input_len", int, None, "Prompt tokens (128).", PROMPTS, ("--random-input-len",)),
    Option("output_len", int, None, "Output tokens (64).", PROMPTS, ("--random-output-len",)),
    Option("random_range_ratio", float, 0.0, "Lengths vary by this share to both sides.", PROMPTS),
    Option(
        "random_prefix_len",
        int,
        0,
        "Tokens that all prompts begin with, before their own.",
        PROMPTS,
        ("--common-prefix-len", "--prefix-len"),
    ),
    Option("shared_prefix_len", int, 0, "How many of the prompt tokens all share.", PROMPTS),
    Option("prefix_repetition_prefix_len", int, 256, "Tokens of each prefix.", PROMPTS),
    Option("prefix_repetition_suffix_len", int, 256, "Tokens after it.", PROMPTS),
    Option("prefix_repetition_num_prefixes", int, 10, "How many prefixes.", PROMPTS),
    Option("prefix_repetition_output_len", int, 128, "Output tokens.", PROMPTS),
    Option("sharegpt_output_len", int, None, "Output tokens, instead of the chat's.", PROMPTS),
    Option("custom_output_len", int, None, "Output tokens, instead of the file's.", PROMPTS),
    Option("num_turns", int, 4, "Turns of a multi_turn chat, on average.", PROMPTS),
    Option("think_time", float, 0.0, "Seconds before each turn but the first.", PROMPTS),
    Option("disable_shuffle", bool, False, "Take a file's rows in their order.", PROMPTS),
    Option("seed", int, 0, "Draws prompts, lengths and moments.", PROMPTS),
)

SERVE = (
    Option("host", str, None, "Host of the server, if not --url.", SERVER),
    Option("port", int, None, "Its port.", SERVER),
    Option("backend", str, None, "openai, vllm or shoal: completions; openai-chat: chat.", SERVER),
    Option("endpoint", str, None, "completions or chat (default: completions).", SERVER),
    Option("served_model_name", str, None, "Same as --model.", SERVER),
    Option("header", str, (), "KEY=VALUE sent with each request.", SERVER, (), True),
    Option("ready_check_timeout_sec", float, 0.0, "Seconds to wait for the server.", SERVER),
    Option("max_concurrency", str, None, "Requests at once; levels as 1,8,32 (default: 8).", LOAD),
    Option(
        "request_rate",
        str,
        None,
        "Requests started a second, at random moments; levels as 0.5,1,2.",
        LOAD,
    ),
    Option("burstiness", float, 1.0, "Below 1 they come in bursts, above 1 evenly.", LOAD),
    Option("ramp_up_strategy", str, None, "linear or exponential: the rate rises.", LOAD),
    Option("ramp_up_start_rps", float, None, "The rate it rises from.", LOAD),
    Option("ramp_up_end_rps", float, None, "The rate it rises to.", LOAD),
    Option("num_prompts", int, None, "Requests a level (default: 4 a stream).", LOAD),
    Option(
        "num_warmups",
        int,
        None,
        "Requests before each level that do not count, after one that is tried.",
        LOAD,
    ),
    *DATA,
    Option("tokenizer", str, None, "Folder that tells the vocabulary.", PROMPTS),
    Option("vocab_size", int, None, "The vocabulary's size itself.", PROMPTS),
    Option("ignore_eos", bool, True, "Ask for all output tokens.", REQUEST),
    Option("temperature", float, 0.0, "0 always takes the likeliest.", REQUEST),
    Option("top_p", float, None, "As in the API.", REQUEST),
    Option("top_k", int, None, "As in the API.", REQUEST),
    Option("min_p", float, None, "As in the API.", REQUEST),
    Option("frequency_penalty", float, None, "As in the API.", REQUEST),
    Option("presence_penalty", float, None, "As in the API.", REQUEST),
    Option("repetition_penalty", float, None, "As in the API.", REQUEST),
    Option("logprobs", int, None, "As in the API.", REQUEST),
    Option("extra_body", str, None, "JSON object of more fields.", REQUEST),
    Option(
        "percentile_metrics", str, "ttft,tpot,itl,e2el", "Latencies that the table shows.", OUTPUT
    ),
    Option("metric_percentiles", str, "50,90,99", "Percentiles of latencies.", OUTPUT),
    Option(
        "goodput",
        str,
        (),
        "Objectives in ms, as ttft:500 tpot:50; counts the requests that keep all, from when due.",
        OUTPUT,
        (),
        True,
    ),
    Option("json", str, None, "File for all figures.", OUTPUT),
    Option("report", str, None, "File for an HTML page with plots.", OUTPUT),
    Option("save_result", bool, False, "Save as vLLM's benchmark does.", OUTPUT),
    Option("save_detailed", bool, False, "The same, with every request.", OUTPUT),
    Option("append_result", bool, False, "Add to the file that is there.", OUTPUT),
    Option("result_dir", str, None, "Folder to save in (default: this one).", OUTPUT),
    Option("result_filename", str, None, "Name of the file to save.", OUTPUT),
    Option("label", str, "shoal", "Begins the name of the file.", OUTPUT),
    Option("metadata", str, (), "KEY=VALUE to be saved.", OUTPUT, (), True),
    Option("disable_tqdm", bool, False, "Show no progress.", OUTPUT),
)

LATENCY = (
    Option("input_len", int, 32, "Prompt tokens.", PROMPTS),
    Option("output_len", int, 128, "Output tokens.", PROMPTS),
    Option("batch_size", int, 8, "Prompts at once.", PROMPTS),
    Option("n", int, 1, "Answers a prompt.", PROMPTS),
    Option("use_beam_search", bool, False, "Search with n beams.", PROMPTS),
    Option("num_iters_warmup", int, 10, "Rounds that do not count.", LOAD),
    Option("num_iters", int, 30, "Rounds that count.", LOAD),
    Option("disable_detokenize", bool, False, "Make no text.", OUTPUT),
    Option("output_json", str, None, "File for the figures.", OUTPUT, ("--json",)),
    Option("disable_tqdm", bool, False, "Show no progress.", OUTPUT),
)

THROUGHPUT = (
    *(option for option in DATA if option.name not in ("num_turns", "think_time")),
    Option("num_prompts", int, 1000, "Prompts.", LOAD),
    Option("num_warmups", int, 0, "Prompts before them that do not count.", LOAD),
    Option("n", int, 1, "Answers a prompt.", PROMPTS),
    Option("temperature", float, 1.0, "0 always takes the likeliest.", PROMPTS),
    Option("disable_detokenize", bool, False, "Make no text.", OUTPUT),
    Option("output_json", str, None, "File for the figures.", OUTPUT, ("--json",)),
    Option("disable_tqdm", bool, False, "Show no progress.", OUTPUT),
)

_NO_IMAGES = "only text is measured"
_ELSEWHERE: Mapping[str, str] = {
    "trust_remote_code": "a tokenizer is read without running code of its model",
    "tokenizer_mode": "the tokenizer is read as the model's files say",
    "use_beam_search": "beams are measured by `shoal bench latency`",
    "profile": "profile the server itself",
    "lora_modules": "LoRA adapters are not built yet",
    "lora_path": "LoRA adapters are not built yet",
    "lora_assignment": "LoRA adapters are not built yet",
    "plot_timeline": "--report FILE draws it",
    "plot_dataset_stats": "--report FILE draws what was sent",
    "request_id_prefix": "the server names its requests",
    "no_stream": "files are read whole, hub data sets are not fetched",
    "no_oversample": "a file's rows are taken again where more prompts are asked for",
    "skip_chat_template": "--endpoint completions sends prompts as they are",
    "hf_name": "hub data sets are not fetched; give a file by --dataset-path",
    "hf_subset": "hub data sets are not fetched; give a file by --dataset-path",
    "hf_split": "hub data sets are not fetched; give a file by --dataset-path",
    "hf_output_len": "hub data sets are not fetched; --output-len sets the length",
    "sonnet_input_len": "its poems are not at hand; --dataset-name random has the same lengths",
    "sonnet_output_len": "its poems are not at hand; --dataset-name random has the same lengths",
    "sonnet_prefix_len": "its poems are not at hand; --random-prefix-len shares a prefix",
    "random_batch_size": "embeddings and scores are not measured",
    "random_mm_base_items_per_request": _NO_IMAGES,
    "random_mm_limit_mm_per_prompt": _NO_IMAGES,
    "random_mm_bucket_config": _NO_IMAGES,
    "insecure": "certificates are checked; serve over http for a measurement",
    "async_engine": "`shoal bench serve` measures a server",
    "hf_max_batch_size": "benchmarks/naive.py compares with transformers",
}
"""Flags that vLLM's benchmarks have and these have not, and what to do instead."""

_OF_ENGINES = ("trust_remote_code", "tokenizer_mode")
"""Those of them that an engine knows too."""


def spellings(options: Iterable[Option]) -> dict[str, Option]:
    """Every flag by its spelling, with dashes."""
    return {flag: option for option in options for flag in (option.flag, *option.also)}


def unfolded(args: Sequence[str], options: Iterable[Option]) -> list[str]:
    """The arguments, where a flag of several words is repeated before each of them."""
    takes = {flag for flag, option in spellings(options).items() if option.several}
    words: list[str] = []
    flag, filled = None, False
    for word in args:
        if word.startswith("--"):
            name, filled = word.partition("=")[0].replace("_", "-"), "=" in word
            flag = name if name in takes else None
            words.append(word)
        elif flag is not None:
            words += [flag, word] if filled else [word]
            filled = True
        else:
            words.append(word)
    return words


def refuse_unknown(args: Sequence[str], known: Iterable[str], *, engine: bool) -> None:
    """Raise ConfigError for the first flag that is none of `known`, with a way out.

    `engine`: other flags may be the engine's, which refuses those that it does not know.
    """
    flags = set(known)
    for word in args:
        flag = word.partition("=")[0].replace("_", "-")
        if not flag.startswith("--") or flag == "--" or flag in flags:
            continue
        name = flag[2:].replace("-", "_")
        if name in _ELSEWHERE and not (engine and name in _OF_ENGINES):
            raise ConfigError(f"{flag} is not taken here: {_ELSEWHERE[name]}", flag)
        if engine:
            continue
        near = difflib.get_close_matches(flag, flags, n=1, cutoff=0.6)
        hint = f"did you mean {near[0]}?" if near else "--help lists all"
        raise ConfigError(f"unknown flag {flag}: {hint}", flag)
