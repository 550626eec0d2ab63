"""What a replica states of its model."""

from __future__ import annotations

import time

from ..engine.checkpoint import checkpoint_facts
from ..engine.executor import Capacity
from .config import ModelConfig
from .link import ModelCard


def model_card(model: ModelConfig, capacity: Capacity) -> ModelCard:
    """The card of an engine that was started for `model`."""
    engine = model.engine
    return ModelCard(
        names=model.served_model_name,
        model=engine.model,
        tokenizer=engine.tokenizer or engine.model,
        max_model_len=capacity.max_model_len,
        vocab_size=capacity.vocab_size,
        max_logprobs=engine.max_logprobs,
        eos_token_ids=tuple(sorted(capacity.eos_token_ids)),
        sampling_defaults=dict(checkpoint_facts(engine).sampling),
        digest=capacity.digest,
        created=int(time.time()),
    )
