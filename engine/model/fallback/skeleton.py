"""transformers' model of a configuration, built without memory."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from ...errors import LoadError
from ..config import ModelConfig
from ..promises import SENSES, refuse_remote_code

ACTIVATIONS = ("hidden_act", "hidden_activation", "activation_function", "hidden_activation_fn")
OWN_ROPES = ("default", "axial", "ntk_alpha")
"""Rope types that models bring themselves, beside those that transformers shares among them."""

OUTPUTS = ("output_attentions", "output_hidden_states", "output_router_logits", "use_cache")
"""What a config.json may ask a forward pass to return, and nobody reads here."""

ELSEWHERE = "its attention does not go through transformers' attention interface"
WAYS = "take a model that attends plainly, or run this one in transformers itself"


def known_architectures() -> list[str]:
    """The causal language models that the installed transformers knows."""
    return sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()))


def model_class(config: ModelConfig, native: tuple[str, ...]) -> Any:
    """The class of transformers that a checkpoint names. Raises LoadError where there is none."""
    name = config.architecture
    known = known_architectures()
    if name in known:
        cls = getattr(transformers, name)
        if senses := [part for part in SENSES if part in cls.config_class.sub_configs]:
            raise LoadError(
                f"{config.path}: {name} takes images or sound ({senses[0]}), and only text models "
                f"are served; take the text model of its family"
            )
        return cls
    refuse_remote_code(config)
    version = transformers.__version__
    if hasattr(transformers, name):
        raise LoadError(
            f"{config.path}: {name} of transformers {version} generates no text from text alone; "
            f"only causal language models are served (names that end in ForCausalLM)"
        )
    near = difflib.get_close_matches(name, [*known, *native], n=1)
    raise LoadError(
        f"{config.path}: architecture {name!r} is neither native here ({', '.join(native)}) nor "
        f"known to transformers {version}"
        + (f"; the nearest name that is known is {near[0]}" if near else "")
        + "; a newer transformers may know it: pip install -U transformers"
    )


def build_skeleton(config: ModelConfig, cls: Any, attention: str, dtype: torch.dtype) -> Any:
    """The whole model on the meta device, with the attention function of that name.

    torch's default dtype is `dtype` meanwhile: constants follow it, as when transformers loads.
    Raises LoadError where transformers cannot build it from this config.json.
    """
    with _quiet():
        try:
            described = cls.config_class.from_dict(_plain(json.loads(config.text)))
        except Exception as error:
            raise LoadError(f"{config.path} is not what {cls.__name__} needs: {error}") from error
        _refuse_unknown_kinds(config, described)
        for name in OUTPUTS:
            if getattr(described, name, False):
                setattr(described, name, False)
        described.return_dict = True
        try:
            with torch.device("meta"):
                made = cls._from_config(described, attn_implementation=attention, dtype=dtype)
                made.tie_weights()
            return made.eval()
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            if isinstance(error, KeyError) and attention in str(error):
                reason = f"does not run on a paged cache: {ELSEWHERE}; {WAYS}"
            else:
                reason = (
                    f"cannot be built of it by transformers {transformers.__version__}: "
                    f"{type(error).__name__}: {error}"
                )
            raise LoadError(f"{config.path}: {cls.__name__} {reason}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' advice on configurations, given each time that it reads one."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(level)


def _plain(value: Any) -> Any:
    """JSON as transformers writes it, where infinities are objects, in plain values."""
    if isinstance(value, dict):
        if value.keys() == {"__float__"}:
            return float(value["__float__"])
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value


def _refuse_unknown_kinds(config: ModelConfig, described: Any) -> None:
    """Raise LoadError for an activation or a rope that transformers does not have."""
    for key in ACTIVATIONS:
        act = getattr(described, key, None)
        if isinstance(act, str) and act not in ACT2FN:
            near = difflib.get_close_matches(act, list(ACT2FN), n=1)
            raise LoadError(
                f"{config.path}: {key} {act!r} is not known"
                + (f"; did the checkpoint mean {near[0]!r}?" if near else "")
            )
    known = {*ROPE_INIT_FUNCTIONS, *OWN_ROPES}
    for kind in _rope_types(getattr(described, "rope_parameters", None)):
        if kind not in known:
            raise LoadError(
                f"{config.path}: rope of type {kind!r} is not known; known are "
                f"{', '.join(sorted(known))}"
            )


def _rope_types(rope: Any) -> Iterator[str]:
    """The types in `rope_parameters`, which may be one rope or one for each kind of layer."""
    if not isinstance(rope, dict):
        return
    if rope.get("rope_type"):
        yield rope["rope_type"]
    for value in rope.values():
        yield from _rope_types(value)


def keep_exact(model: Any, dtype: torch.dtype) -> frozenset[nn.Parameter]:
    """The parameters that transformers holds in float32 whatever the dtype, which now are so.

    Buffers of such names become float32 as well.
    """
    patterns = set(model._keep_in_fp32_modules_strict or ())
    if dtype is torch.float16:
        patterns |= set(model._keep_in_fp32_modules or ())
    if dtype is torch.float32 or not patterns:
        return frozenset()
    rule = re.compile("|".join(pattern.replace("*", ".*") for pattern in patterns))
    exact = set()
    for path, module in model.named_modules():
        for name, weight in module.named_parameters(path, recurse=False):
            if rule.search(name) and weight.is_floating_point():
                whole = nn.Parameter(weight.float(), requires_grad=False)
                setattr(module, name.rpartition(".")[2], whole)
                exact.add(whole)
        for name, buffer in module.named_buffers(path, recurse=False):
            if rule.search(name) and buffer.is_floating_point():
                module._buffers[name.rpartition(".")[2]] = buffer.float()
    return frozenset(exact)


def make_constants(model: Any, config: ModelConfig) -> None:
    """Give buffers memory, and their values to those that no checkpoint holds.

    Parameters stay on the meta device. Raises LoadError where transformers leaves one without a
    value.
    """
    derived: list[tuple[str, Tensor]] = []
    for path, module in model.named_modules():
        module._is_hf_initialized = False
        for name, buffer in module.named_buffers(recurse=False):
            real = torch.zeros(buffer.shape, dtype=buffer.dtype, device="cpu")
            module._buffers[name] = real
            if name not in module._non_persistent_buffers_set:
                real._is_hf_initialized = True  # type: ignore[attr-defined]
            elif real.is_floating_point():
                derived.append((f"{path}.{name}", real.fill_(math.nan)))
    for weight in model.parameters():
        weight._is_hf_initialized = True
    model.initialize_weights()
    for name, buffer in derived:
        if buffer.isnan().any():
            raise LoadError(f"{config.path}: transformers gives no value to the constant {name}")


def fix_rope(model: nn.Module, max_len: int | None) -> None:
    """Fix the frequencies that would follow from the longest position of a batch.

    With `max_len`, the longest text that the engine takes, they are those of such a text; without
    it they only stop moving.
    """
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        if not isinstance(kinds, str | dict):
            continue
        by_layer = kinds if isinstance(kinds, dict) else {None: kinds}
        for layer, kind in by_layer.items():
            if max_len is not None and (kind == "longrope" or "dynamic" in kind):
                prefix, more = ("", {}) if layer is None else (f"{layer}_", {"layer_type": layer})
                inv_freq, scale = ROPE_INIT_FUNCTIONS[kind](
                    module.config, torch.device("cpu"), seq_len=max_len, **more
                )
                module._buffers[f"{prefix}inv_freq"] = inv_freq
                setattr(module, f"{prefix}attention_scaling", scale)
        still: Any = dict.fromkeys(kinds, "fixed") if isinstance(kinds, dict) else "fixed"
        module.rope_type = still
