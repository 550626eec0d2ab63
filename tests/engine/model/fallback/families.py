"""Two-layer configurations of the families that the fallback is tested on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import transformers

VOCAB = 331
SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCAB,
    "max_position_embeddings": 256,
    "eos_token_id": None,
    "bos_token_id": None,
    "pad_token_id": None,
}
HEADS = {**SMALL, "head_dim": 16}
WINDOWS: dict[str, Any] = {
    "sliding_window": 24,
    "layer_types": ["sliding_attention", "full_attention"],
}
EXPERTS: dict[str, Any] = {
    "num_local_experts": 4,
    "num_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "shared_expert_intermediate_size": 48,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
OLD: dict[str, Any] = {"n_embd": 64, "n_inner": 96, "n_layer": 2, "n_head": 4, "n_positions": 256}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0 + i / 20 for i in range(8)],
    "long_factor": [1.5 + i / 5 for i in range(8)],
}
STRETCH = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}


@dataclass(frozen=True)
class Twin:
    """A family's configuration class, its values, the texts' lengths, the engine's longest text."""

    family: str
    values: dict[str, Any]
    lengths: tuple[int, ...] = (1, 7, 40, 90)
    max_len: int | None = None

    @property
    def config(self) -> Any:
        return getattr(transformers, f"{self.family}Config")(**self.values)


PHI_LONG = {**SMALL, "original_max_position_embeddings": 64, "rope_parameters": LONG}
TWINS = {
    "olmo2": Twin("Olmo2", SMALL),
    "olmo3-windows": Twin("Olmo3", {**SMALL, **WINDOWS}),
    "phi3-window": Twin("Phi3", {**SMALL, "sliding_window": 24}),
    "phi3-longrope-short": Twin("Phi3", PHI_LONG, (5, 40), 64),
    "phi3-longrope-long": Twin("Phi3", PHI_LONG, (90, 200), 256),
    "starcoder2-window": Twin("Starcoder2", {**SMALL, "sliding_window": 24}),
    "granite": Twin(
        "Granite",
        {**SMALL, "attention_multiplier": 0.2, "logits_scaling": 3.0, "embedding_multiplier": 4.0},
    ),
    "gpt-neox": Twin("GPTNeoX", {**SMALL, "rope_parameters": None}),
    "opt": Twin("OPT", {**SMALL, "ffn_dim": 96, "word_embed_proj_dim": 32}),
    "gemma": Twin("Gemma", HEADS),
    "gemma2": Twin("Gemma2", {**HEADS, **WINDOWS, "query_pre_attn_scalar": 20}),
    "gemma3": Twin("Gemma3Text", {**HEADS, **WINDOWS, "final_logit_softcapping": 20.0}),
    "stablelm": Twin("StableLm", {**SMALL, "use_qkv_bias": True, "use_parallel_residual": True}),
    "stablelm-dynamic": Twin(
        "StableLm",
        {**SMALL, "max_position_embeddings": 32, "rope_parameters": STRETCH},
        (90,),
        90,
    ),
    "cohere": Twin("Cohere", {**SMALL, "logit_scale": 0.25, "use_qk_norm": True}),
    "cohere2-windows": Twin("Cohere2", {**SMALL, **WINDOWS}),
    "phi": Twin("Phi", SMALL),
    "glm4": Twin("Glm4", HEADS),
    "smollm3": Twin("SmolLM3", SMALL),
    "ernie4.5": Twin("Ernie4_5", HEADS),
    "exaone4-windows": Twin("Exaone4", {**SMALL, **WINDOWS}),
    "nemotron": Twin("Nemotron", HEADS),
    "apertus": Twin("Apertus", SMALL),
    "gpt-bigcode": Twin("GPTBigCode", {**OLD, "vocab_size": VOCAB}),
    "mixtral": Twin("Mixtral", {**SMALL, **EXPERTS}),
    "olmoe": Twin("Olmoe", {**SMALL, **EXPERTS}),
    "qwen2-moe": Twin("Qwen2Moe", {**SMALL, **EXPERTS}),
    "qwen3-moe": Twin("Qwen3Moe", {**HEADS, **EXPERTS}),
    "glm4-moe": Twin("Glm4Moe", {**HEADS, **EXPERTS}),
    "ernie4.5-moe": Twin(
        "Ernie4_5_Moe",
        {**SMALL, "moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 48},
    ),
    "gemma4": Twin(
        "Gemma4Text",
        {
            **HEADS,
            **WINDOWS,
            "global_head_dim": 32,
            "num_kv_shared_layers": 0,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": VOCAB,
        },
    ),
    "granite-moe": Twin("GraniteMoe", {**SMALL, **EXPERTS}),
}
NATIVE = {
    "llama": Twin("Llama", SMALL),
    "qwen2-windows": Twin(
        "Qwen2", {**SMALL, "use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1}
    ),
    "qwen3": Twin("Qwen3", HEADS),
}
GREEDY = (
    "olmo2",
    "phi3-window",
    "starcoder2-window",
    "granite",
    "gpt-neox",
    "opt",
    "gemma2",
    "gemma3",
    "stablelm",
    "cohere2-windows",
    "gpt-bigcode",
    "mixtral",
)
