"""What a replica states of its model."""

from __future__ import annotations

import json
import time
from pathlib import Path

from ..engine.executor import Capacity
from .config import ServeConfig
from .link import ModelCard

_DEFAULTS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def model_card(config: ServeConfig, capacity: Capacity) -> ModelCard:
    """The card of an engine that was started with `config`."""
    engine = config.engine
    return ModelCard(
        names=config.served_model_name,
        model=engine.model,
        tokenizer=engine.tokenizer or engine.model,
        max_model_len=capacity.max_model_len,
        vocab_size=capacity.vocab_size,
        max_logprobs=engine.max_logprobs,
        eos_token_ids=tuple(sorted(capacity.eos_token_ids)),
        sampling_defaults=_sampling_defaults(Path(engine.model)),
        digest=capacity.digest,
        created=int(time.time()),
    )


def _sampling_defaults(folder: Path) -> dict[str, float]:
    file = folder / "generation_config.json"
    given = json.loads(file.read_text()) if file.is_file() else {}
    return {name: given[name] for name in _DEFAULTS if given.get(name) is not None}
