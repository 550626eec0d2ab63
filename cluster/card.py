"""What a replica states of its model."""

from __future__ import annotations

import time

from ..engine.checkpoint import checkpoint_facts
from ..engine.config import EngineConfig
from ..engine.executor import Capacity
from .config import ModelConfig
from .link import ModelCard


def model_card(model: ModelConfig, capacity: Capacity, version: str = "") -> ModelCard:
    """The card of an engine that was started for `model`; see ModelCard."""
    engine = model.engine
    tokenizer, tokenizer_revision = engine.tokenizer_place
    return ModelCard(
        names=model.served_model_name,
        model=engine.model,
        tokenizer=tokenizer,
        tokenizer_revision=tokenizer_revision,
        max_model_len=capacity.max_model_len,
        vocab_size=capacity.vocab_size,
        max_logprobs=engine.max_logprobs,
        eos_token_ids=tuple(sorted(capacity.eos_token_ids)),
        sampling_defaults=dict(checkpoint_facts(engine).sampling),
        digest=capacity.digest,
        created=int(time.time()),
        cache=_cache(engine, capacity),
        block_size=capacity.block_size if engine.enable_prefix_caching else 0,
        window=max((spec.window or 0 for spec in capacity.groups), default=0),
        version=version,
    )


def _cache(engine: EngineConfig, capacity: Capacity) -> dict[str, str]:
    """How the KV cache is made, in vLLM's words."""
    return {
        "block_size": str(capacity.block_size),
        "cache_dtype": capacity.dtype,
        "enable_prefix_caching": str(engine.enable_prefix_caching),
        "gpu_memory_utilization": str(engine.gpu_memory_utilization),
        "num_cpu_blocks": str(sum(capacity.num_blocks) if capacity.device == "cpu" else 0),
        "num_gpu_blocks": str(sum(capacity.num_blocks)),
        "num_gpu_blocks_override": str(engine.num_gpu_blocks_override),
    }
