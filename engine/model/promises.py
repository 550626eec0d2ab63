"""What a config.json promises and shoal cannot keep yet: refused by name, before loading.

No torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import LoadError
from .config import ModelConfig

SENSES = ("vision_config", "audio_config", "speech_config", "mm_vision_tower")
"""Keys by which a configuration says that its model takes more than text."""

LAYERS = ("full_attention", "sliding_attention")

NEXT_TOKENS = ("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_layers", "mtp_layers")
"""Keys that count layers which guess further tokens."""


def refuse_promises(config: ModelConfig) -> None:
    """Raise LoadError for what no model here does, whatever its architecture."""
    _refuse_quantized(config)
    if config.get("is_encoder_decoder", False):
        raise LoadError(
            f"{config.path}: is_encoder_decoder is true: {config.architecture} reads with an "
            f"encoder and cross-attention, and only decoders are served; take a causal language "
            f"model"
        )
    for key in SENSES:
        if config.get(key) is not None:
            raise LoadError(
                f"{config.path} has {key}: {config.architecture} takes images or sound, and only "
                f"text models are served; take the text model of its family"
            )


def refuse_unknown_layers(config: ModelConfig) -> None:
    """Raise LoadError for a kind of layer that no native architecture has."""
    for kind in config.get("layer_types", ()):
        if kind not in LAYERS:
            raise LoadError(
                f"{config.path}: layer_types names {kind!r}, and {config.architecture} has only "
                f"{' and '.join(LAYERS)} here; model_impl: transformers may know it"
            )


def refuse_next_tokens(config: ModelConfig, names: Iterable[str], ignored: re.Pattern[str]) -> None:
    """Raise LoadError where a checkpoint holds layers that guess further tokens.

    Text does not need them: they are let be where the model's own code says so (`ignored`).
    """
    held = [name for name in names if _guesses(config, name) and not ignored.search(name)]
    if held:
        counts = [f"{key}={config.get(key)}" for key in NEXT_TOKENS if config.get(key)]
        raise LoadError(
            f"{config.path}{f' has {counts[0]}' if counts else ''}: the checkpoint holds "
            f"{held[0]!r} and {len(held) - 1} more tensors of layers that predict further tokens "
            f"(MTP), which are not built yet; text does not need them: write the checkpoint out "
            f"without (from_pretrained, then save_pretrained of transformers)"
        )


def _guesses(config: ModelConfig, name: str) -> bool:
    if re.search(r"(^|\.)(mtp|mtp_layers|nextn)\.", name):
        return True
    layer = re.match(r"model\.layers\.(\d+)\.", name)
    extra = any(config.get(key) for key in NEXT_TOKENS)
    return bool(layer and extra and int(layer[1]) >= config.num_hidden_layers)


def refuse_remote_code(config: ModelConfig) -> None:
    """Raise LoadError naming the file that would run, where only its repository knows a model.

    For architectures that nothing here knows; with others `auto_map` is of no concern.
    """
    classes = config.get("auto_map")
    if not isinstance(classes, Mapping):
        return
    wanted = ("AutoModelForCausalLM", "AutoModel", "AutoConfig")
    named = next((classes[key] for key in wanted if classes.get(key)), None)
    named = named or next(iter(classes.values()), None)
    if isinstance(named, list | tuple):
        named = next((name for name in named if name), None)
    if not isinstance(named, str):
        return
    where, _, dotted = named.rpartition("--")
    file = dotted.rpartition(".")[0].replace(".", "/") + ".py"
    raise LoadError(
        f"{config.path}: architecture {config.architecture!r} is known only to code of its "
        f"repository: {file}{f' of {where}' if where else ''} would have to run, and "
        f"trust_remote_code is off: code from a model's repository is never run; take a model "
        f"whose architecture transformers knows"
    )


def _refuse_quantized(config: ModelConfig) -> None:
    for key in ("quantization_config", "compression_config"):
        found: Any = config.get(key)
        if not found:
            continue
        method = found.get("quant_method") if isinstance(found, Mapping) else found
        method = method or (re.sub("_config$", "", key))
        raise LoadError(
            f"{config.path} has {key}: its weights are quantized ({method}), which is not built "
            f"yet; use the checkpoint's bfloat16 or float32 form"
        )
