"""What a configuration's checkpoint says of itself, before anything of it is loaded. No torch."""

from __future__ import annotations

from .config import EngineConfig
from .model.config import ModelFacts, model_facts
from .model.hub import find_model


def checkpoint_facts(config: EngineConfig) -> ModelFacts:
    """Facts of the model of `config`, which is fetched where it is neither here nor in the cache.

    Raises LoadError.
    """
    folder = find_model(
        config.model,
        revision=config.revision,
        download_dir=config.download_dir,
        load_format=config.load_format,
    )
    return model_facts(folder, generation_config=config.generation_config == "auto")
