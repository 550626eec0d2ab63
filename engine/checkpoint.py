"""What a configuration's checkpoint says of itself, before anything of it is loaded. No torch."""

from __future__ import annotations

import contextlib
from pathlib import Path

from . import tokenizer_files
from .config import EngineConfig
from .errors import ConfigError, LoadError
from .model import weights
from .model.config import ModelFacts, model_facts
from .model.hub import find_model
from .model.repository import Progress
from .seat import check_even, layer_ranges
from .worker.machine import free_memory


def checkpoint_facts(config: EngineConfig, on_progress: Progress | None = None) -> ModelFacts:
    """Facts of the model of `config`, which is fetched where it is neither here nor in the cache.

    `on_progress` is told (bytes fetched, bytes to fetch). Raises LoadError.
    """
    folder = find_model(
        config.model,
        revision=config.revision,
        download_dir=config.download_dir,
        load_format=config.load_format,
        on_progress=on_progress,
    )
    named = {"auto": True, "vllm": False, "shoal": False}
    chosen = named.get(config.generation_config, Path(config.generation_config))
    return model_facts(folder, generation_config=chosen)


def check_ranks(config: EngineConfig, facts: ModelFacts) -> None:
    """Raise ConfigError where the ranks of `config` cannot share its model, as far as its
    config.json tells.
    """
    if facts.num_heads and facts.num_layers and config.model_impl != "transformers":
        size = config.tensor_parallel_size
        check_even(facts.num_heads, size, "q_proj heads", repeated=True)
        stages = config.pipeline_parallel_size
        layer_ranges(facts.num_layers, stages, config.pipeline_layer_partition)


def check_tokenizer(config: EngineConfig) -> None:
    """Read the tokenizer of `config`, so that what is wrong with it is known before weights load.

    Raises LoadError, and ConfigError for the chat template.
    """
    path, revision = config.tokenizer_place
    tokenizer_files.read(path, revision, config.download_dir, config.chat_template)


def read_ahead(config: EngineConfig) -> None:
    """Bring weights that lie on this machine's disk into its memory, if they leave room there.

    For a thread of its own, while something else starts; what is wrong with them, whoever loads
    them will say.
    """
    with contextlib.suppress(ConfigError, LoadError, OSError):
        if config.load_format == "dummy":
            return
        folder = find_model(
            config.model,
            revision=config.revision,
            download_dir=config.download_dir,
            load_format=config.load_format,
        )
        files = weights.weight_files(folder, config.load_format)
        if sum(file.size for file in files) <= free_memory().free // 2:
            weights.read_ahead(files)
