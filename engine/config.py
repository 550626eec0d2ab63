"""What an engine is told. Frozen: what start-up finds out comes back as `Capacity`.

Each field is at once an argument of `LLM`, a flag of `shoal serve` (with dashes) and a YAML key,
under the name that vLLM gives it; `setting(...)` carries its help text and its group for all three.
"""

from __future__ import annotations

import dataclasses
import difflib
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .errors import ConfigError
from .names import IDLE
from .unbuilt import NOT_BUILT

DTYPES = ("auto", "float32", "float", "bfloat16", "float16", "half")
MODEL_IMPLS = ("auto", "shoal", "transformers")
LOAD_FORMATS = ("auto", "safetensors", "pt", "dummy")
GENERATION = ("auto", "vllm", "shoal")
POLICIES = ("fcfs", "priority")
ATTENTION = ("auto", "triton", "FLASH_ATTN", "FLASHINFER", "torch", "TRITON_ATTN", "TORCH_SDPA")

MOST_THREADS = 1024
"""As many cores as Linux names in an affinity mask of the usual size."""

log = logging.getLogger(__name__)


def setting(default: Any, help: str, *, group: str, first: bool = False) -> Any:
    """A field with the help text and group that flags and documentation show.

    `first` puts it on the short list.
    """
    return dataclasses.field(
        default=default, metadata={"help": help, "group": group, "first": first}
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """One engine.

    Which model, in what memory, with what limits. Raises ConfigError naming the key.
    """

    model: str = setting("", "Model folder or hub id.", group="Model", first=True)
    tokenizer: str | None = setting(
        None, "Tokenizer folder or hub id, where it is not the model's.", group="Model"
    )
    revision: str | None = setting(None, "Branch, tag or commit of a hub model.", group="Model")
    tokenizer_revision: str | None = setting(
        None, "Branch, tag or commit of the tokenizer (default: the model's).", group="Model"
    )
    download_dir: str | None = setting(
        None, "Where hub models are kept (default: the hub's own cache).", group="Model"
    )
    load_format: str = setting(
        "auto",
        "auto (safetensors, else pytorch_model*.bin), safetensors or pt; dummy gives random "
        "weights of the real shapes.",
        group="Model",
    )
    dtype: str = setting(
        "auto",
        "auto, float32, bfloat16, float16 or half. On CPUs auto means float32 for small models.",
        group="Model",
        first=True,
    )
    model_impl: str = setting(
        "auto",
        "auto: shoal's own code for the architectures that it has, transformers' for others; "
        "shoal or transformers: that one only.",
        group="Model",
    )
    max_model_len: int | None = setting(
        None,
        "Longest prompt plus output, in tokens; 32k stands for 32,000 and 32K for 32,768 "
        "(default: the model's own).",
        group="Model",
        first=True,
    )
    generation_config: str = setting(
        "auto",
        "auto: the model's generation_config.json gives default sampling parameters; "
        "vllm or shoal: it does not; a folder: that one's does.",
        group="Model",
    )
    chat_template: str | None = setting(
        None,
        "Jinja chat template in place of the model's: a file, or the template itself on one line.",
        group="Model",
    )
    seed: int = setting(
        0,
        "Seeds what a request without a seed draws; each of several gateways draws others.",
        group="Model",
    )
    device: str = setting("auto", "auto, cpu or cuda.", group="Model")
    max_logprobs: int = setting(
        20, "Most alternatives a request may ask log probabilities of; -1: any.", group="Model"
    )

    gpu_memory_utilization: float = setting(
        0.9,
        "Share of the GPU's free memory for weights and cache; unused on CPUs.",
        group="Memory",
        first=True,
    )
    kv_cache_memory_bytes: int | None = setting(
        None, "Bytes for the KV cache, instead of a share of what is free.", group="Memory"
    )
    num_gpu_blocks_override: int | None = setting(
        None, "Number of KV blocks, instead of as many as fit.", group="Memory"
    )
    cpu_memory_share: float = setting(
        0.4, "On CPUs: share of the free memory that the KV cache may take.", group="Memory"
    )
    memory_sharers: int | None = setting(
        None,
        "How many engines share this machine's memory and cores (default: as many as are placed "
        "on it).",
        group="Memory",
    )
    block_size: int | None = setting(
        None, "Tokens a KV block (default: 16 on CUDA, 32 on CPUs).", group="Memory"
    )
    enable_prefix_caching: bool = setting(
        True, "Reuse the KV blocks of equal prompt beginnings.", group="Memory"
    )

    max_num_seqs: int = setting(
        256, "Most sequences computed at once.", group="Scheduling", first=True
    )
    max_num_batched_tokens: int | None = setting(
        None,
        "Most tokens a step computes; where it is given, prompts may have all of them (default: "
        "2,048 on CUDA; on CPUs 512, of which prompts 128, or 256 with AMX, but of `LLM` all).",
        group="Scheduling",
        first=True,
    )
    max_waiting: int = setting(
        1024, "Most requests that wait; one more is answered 429.", group="Scheduling"
    )
    enable_chunked_prefill: bool = setting(
        True, "Compute long prompts in pieces, beside other requests.", group="Scheduling"
    )
    scheduling_policy: str = setting(
        "fcfs", "fcfs, or priority: lower `priority` goes first.", group="Scheduling"
    )
    async_scheduling: bool | None = setting(
        None, "Plan the next step while this one computes (default: on CUDA).", group="Scheduling"
    )
    threads: int | None = setting(
        None,
        "CPU threads an engine computes with (default: its share of the cores).",
        group="Scheduling",
    )

    tensor_parallel_size: int = setting(
        1, "Ranks that each hold a slice of every layer.", group="Parallel", first=True
    )
    pipeline_parallel_size: int = setting(
        1, "Stages that each hold some of the layers.", group="Parallel"
    )
    pipeline_layer_partition: str | None = setting(
        None, "Layers of each stage, as 7,8,7 (default: as even as can be).", group="Parallel"
    )
    interface: str | None = setting(
        None,
        "Network interface that ranks of several nodes talk over (default: the one Ray uses).",
        group="Parallel",
    )
    stall_timeout: float = setting(
        10.0,
        "Seconds without progress, or without a sign of life, after which a replica or one of its "
        "ranks is given up; 0: never.",
        group="Parallel",
    )
    load_timeout: float = setting(
        3600.0,
        "Seconds that a model may take to be fetched and loaded, after which its replica is given "
        "up; 0: any number.",
        group="Parallel",
    )
    enforce_eager: bool = setting(
        False,
        "Call a model op by op at every step, instead of replaying a step that was recorded.",
        group="Parallel",
    )
    attention_backend: str = setting(
        "auto",
        "On CUDA: auto (by GPU, dtype and head size), triton, FLASH_ATTN, FLASHINFER or torch; one "
        "that cannot serve the model is refused before it is loaded.",
        group="Parallel",
    )
    deterministic: bool = setting(
        False,
        "On CUDA: a text is the same bits whatever runs beside it, at some cost; on CPUs with the "
        "native ops it always is.",
        group="Parallel",
    )

    def __post_init__(self) -> None:
        _check(self)

    @property
    def tokenizer_place(self) -> tuple[str, str | None]:
        """Folder or hub id of the tokenizer, and its revision."""
        own = self.tokenizer in (None, self.model)
        revision = self.tokenizer_revision or (self.revision if own else None)
        return self.tokenizer or self.model, revision

    @property
    def sharers(self) -> int:
        """How many engines share the memory, this one included."""
        return self.memory_sharers or 1

    def step_tokens(self, usual: int) -> int:
        """The token budget of a step, where a device's usual one is so many."""
        return self.max_num_batched_tokens or max(usual, self.max_num_seqs)

    def prompt_tokens(self, usual: int | None) -> int | None:
        """How many of these prompts may have, where a device has a usual number; None: all."""
        own = self.max_num_batched_tokens is not None or not self.enable_chunked_prefill
        return None if own else usual


def engine_keys() -> tuple[str, ...]:
    """The names that EngineConfig takes."""
    return tuple(f.name for f in dataclasses.fields(EngineConfig))


def from_keys(keys: Mapping[str, Any]) -> EngineConfig:
    """An EngineConfig from vLLM's keys by their underscore names.

    None stands for the default; what a key that changes nothing means here is logged. Raises
    ConfigError for an unknown key (with the nearest known one) and for a feature that is not built.
    """
    known = {}
    for key, value in keys.items():
        if key in NOT_BUILT:
            refuse_unbuilt(key, value)
        elif key in IDLE:
            if IDLE[key].asks(value):
                log.warning("%s=%r changes nothing: %s", key, value, IDLE[key].why)
        elif key in engine_keys():
            if value is not None:
                known[key] = os.fspath(value) if isinstance(value, os.PathLike) else value
        else:
            raise ConfigError(unknown_key(key, [*engine_keys(), *NOT_BUILT]), key)
    return EngineConfig(**known)


def refuse_unbuilt(key: str, value: object) -> None:
    """Raise ConfigError unless `value` leaves the unbuilt feature off."""
    if NOT_BUILT[key].asks(value):
        why = NOT_BUILT[key].why
        raise ConfigError(f"{key}={value!r} cannot be kept: {why}. Remove it to go on.", key)


def unknown_key(key: str, known: Iterable[str]) -> str:
    """The sentence that refuses an unknown key and names the nearest known one."""
    near = difflib.get_close_matches(key.replace("-", "_"), list(known), n=1, cutoff=0.6)
    return f"unknown setting {key!r}" + (f"; did you mean {near[0]!r}?" if near else "")


_KINDS: Mapping[str, tuple[tuple[type, ...], str]] = {
    "str": ((str,), "text"),
    "bool": ((bool,), "true or false"),
    "int": ((int,), "an integer"),
    "float": ((int, float), "a number"),
}


def _check(config: EngineConfig) -> None:
    for field in dataclasses.fields(config):
        _of_kind(config, field.name, str(field.type))
    if not os.path.isdir(config.generation_config):
        _one_of(config, "generation_config", (*GENERATION, "a folder"))
    _one_of(config, "dtype", DTYPES)
    _one_of(config, "model_impl", MODEL_IMPLS)
    _one_of(config, "load_format", LOAD_FORMATS)
    _one_of(config, "scheduling_policy", POLICIES)
    _one_of(config, "device", ("auto", "cpu", "cuda"))
    _one_of(config, "attention_backend", ATTENTION)
    for name in ("max_num_seqs", "max_waiting"):
        _at_least(config, name, 1)
    for name in (
        "max_model_len",
        "max_num_batched_tokens",
        "kv_cache_memory_bytes",
        "block_size",
        "threads",
        "memory_sharers",
    ):
        if getattr(config, name) is not None:
            _at_least(config, name, 1)
    if (config.threads or 1) > MOST_THREADS:
        raise ConfigError(
            f"threads must be at most {MOST_THREADS:,}, got {config.threads}: one a core is best",
            "threads",
        )
    if config.num_gpu_blocks_override is not None:
        _at_least(config, "num_gpu_blocks_override", 2)
    for name in ("gpu_memory_utilization", "cpu_memory_share"):
        value = getattr(config, name)
        if not 0.0 < value <= 1.0:
            raise ConfigError(f"{name} must be above 0 and at most 1, got {value}", name)
    if config.block_size is not None and config.block_size & (config.block_size - 1):
        raise ConfigError(
            f"block_size must be a power of two, got {config.block_size}", "block_size"
        )
    tokens = config.max_num_batched_tokens
    if tokens is not None and tokens < config.max_num_seqs:
        raise ConfigError(
            f"max_num_batched_tokens ({tokens}) must be at least "
            f"max_num_seqs ({config.max_num_seqs}): each running sequence needs a token a step",
            "max_num_batched_tokens",
        )
    for name in ("tensor_parallel_size", "pipeline_parallel_size"):
        _at_least(config, name, 1)
    for name in ("stall_timeout", "load_timeout"):
        _at_least(config, name, 0)


def _of_kind(config: EngineConfig, name: str, annotation: str) -> None:
    kind, _, null = annotation.partition(" | ")
    types, noun = _KINDS[kind]
    value = getattr(config, name)
    fits = isinstance(value, types) and (kind == "bool" or not isinstance(value, bool))
    if not (fits or (null and value is None)):
        raise ConfigError(f"{name} must be {noun}, got {value!r}", name)


def _one_of(config: EngineConfig, name: str, values: tuple[str, ...]) -> None:
    value = getattr(config, name)
    if value not in values:
        raise ConfigError(f"{name} must be one of {', '.join(values)}; got {value!r}", name)


def _at_least(config: EngineConfig, name: str, low: int) -> None:
    value = getattr(config, name)
    if value < low:
        raise ConfigError(f"{name} must be at least {low}, got {value}", name)
