"""config.json in one spelling: what some families call by other names, or leave unsaid. No torch.

Names and defaults are those of each family's configuration class in transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Values = Mapping[str, Any]

NATIVE = frozenset(
    {
        *("FalconForCausalLM", "GPT2LMHeadModel", "LlamaForCausalLM", "MistralForCausalLM"),
        *("Qwen2ForCausalLM", "Qwen3ForCausalLM", "RWForCausalLM"),
    }
)
"""Architectures in shoal's own code, the only ones that are cut into ranks; see `zoo/registry`."""

GPT2_NAMES = {
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_inner": "intermediate_size",
    "n_positions": "max_position_embeddings",
    "activation_function": "hidden_act",
}
OLD_NAMES = {
    **GPT2_NAMES,
    "d_model": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "max_seq_len": "max_position_embeddings",
}
"""What other families call a model's sizes."""

GPT2_DEFAULTS = {
    "max_position_embeddings": 1024,
    "hidden_act": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "eos_token_id": 50256,
    "tie_word_embeddings": True,
}
FALCON_NAMES = {
    "n_embed": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_head_kv": "num_kv_heads",
    "ffn_hidden_size": "intermediate_size",
    "activation": "hidden_act",
}
FALCON_DEFAULTS = {
    "max_position_embeddings": 2048,
    "hidden_act": "gelu",
    "layer_norm_epsilon": 1e-5,
    "eos_token_id": 11,
    "tie_word_embeddings": True,
    "multi_query": True,
    "parallel_attn": True,
}
MISTRAL_DEFAULTS = {"num_key_value_heads": 8, "sliding_window": 4096}


def canonical(values: Values) -> dict[str, Any]:
    """The values under Llama's names, with the family's defaults where the file says nothing.

    A null in the file overrides a default: it means none.
    """
    family = FAMILIES.get((values.get("architectures") or [None])[0])
    if family is not None:
        return family(values)
    renamed = {ours: values[theirs] for theirs, ours in OLD_NAMES.items() if theirs in values}
    return {**renamed, **values}


def _gpt2(values: Values) -> dict[str, Any]:
    return _four_times_wider({**GPT2_DEFAULTS, **_renamed(values, GPT2_NAMES)})


def _falcon(values: Values) -> dict[str, Any]:
    found = _four_times_wider({**FALCON_DEFAULTS, **_renamed(values, FALCON_NAMES)})
    if found.get("model_type") == "RefinedWeb":  # what Falcon-40B was called at first
        found["new_decoder_architecture"] = True
    grouped = found.get("new_decoder_architecture")
    if grouped:
        found["num_key_value_heads"] = found.get("num_kv_heads")
    else:  # num_kv_heads is in such files too, and means nothing
        found["num_key_value_heads"] = 1 if found["multi_query"] else None
    return found


def _mistral(values: Values) -> dict[str, Any]:
    return {**MISTRAL_DEFAULTS, **values}


def _renamed(values: Values, names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(name, name): value for name, value in values.items()}


def _four_times_wider(values: dict[str, Any]) -> dict[str, Any]:
    """A feed-forward block whose width is not said is four times as wide as the stream."""
    if values.get("intermediate_size") is None and values.get("hidden_size") is not None:
        values["intermediate_size"] = 4 * values["hidden_size"]
    return values


FAMILIES: Mapping[str, Callable[[Values], dict[str, Any]]] = {
    "GPT2LMHeadModel": _gpt2,
    "FalconForCausalLM": _falcon,
    "RWForCausalLM": _falcon,
    "MistralForCausalLM": _mistral,
}
