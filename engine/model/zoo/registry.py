"""Which architecture is which class, and how one is built."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from ... import sizing
from ...errors import LoadError
from ...plan import CacheSpec
from ..batch import ModelInput
from ..config import ModelConfig
from ..mesh import Mesh, Stage
from ..promises import refuse_promises, refuse_unknown_layers
from .falcon import falcon
from .gpt2 import gpt2
from .llama import llama
from .mistral import mistral
from .qwen2 import qwen2
from .qwen3 import qwen3


class CausalLM(Protocol):
    """What the worker sees of a model, or of one stage of it.

    `cache_specs`: what each layer caches, in the order of `ModelInput.kv`, on this rank.
    """

    cache_specs: list[CacheSpec]

    def forward(self, batch: ModelInput, hidden: Tensor | None = None) -> Tensor:
        """Hidden states [T, d] of the batch's tokens, behind the last norm.

        A stage that is not the first begins with `hidden`, which the one before returned and which
        it may overwrite; one that is not the last returns what the next begins with.
        """
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """[S, vocabulary] float32 of hidden states [S, d], whole on each rank of the last stage."""
        ...

    def greatest(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Of each row the greatest logit [S] float32, a NaN above all, and the first id [S] that
        has it: bit for bit what `logits` gives."""
        ...


ARCHITECTURES: dict[str, Callable[..., CausalLM]] = {
    "FalconForCausalLM": falcon,
    "GPT2LMHeadModel": gpt2,
    "LlamaForCausalLM": llama,
    "MistralForCausalLM": mistral,
    "Qwen2ForCausalLM": qwen2,
    "Qwen3ForCausalLM": qwen3,
    "RWForCausalLM": falcon,
}


def is_native(config: ModelConfig, impl: str = "auto") -> bool:
    """Whether a model runs in shoal's own code."""
    return impl != "transformers" and config.architecture in ARCHITECTURES


def build(
    config: ModelConfig,
    mesh: Mesh,
    dtype: torch.dtype,
    device: torch.device | str,
    *,
    stage: Stage | None = None,
    max_len: int | None = None,
    impl: str = "auto",
) -> CausalLM:
    """The model that `config` names, this rank's slices, weights not yet loaded.

    On device "meta" it takes no memory. `stage`: only that (all of it by default). `max_len`: the
    longest text that the engine takes (the model's own by default). `impl`: EngineConfig's
    `model_impl`. Raises LoadError for what cannot be served, ConfigError where the ranks cannot
    share it evenly.
    """
    name = config.architecture
    refuse_promises(config)
    if is_native(config, impl):
        refuse_unknown_layers(config)
        model = ARCHITECTURES[name](config, mesh, stage=stage, max_len=max_len)
    elif impl == "shoal":
        raise LoadError(
            f"{config.path}: architecture {name!r} is not native here, and model_impl is shoal; "
            f"native are {', '.join(sorted(ARCHITECTURES))}; model_impl: auto runs others in "
            f"transformers' code"
        )
    else:
        # transformers' modelling code takes seconds to import: only whoever needs it does.
        from ..fallback.lm import fallback

        native = tuple(sorted(ARCHITECTURES))
        model = fallback(config, mesh, dtype, native=native, stage=stage, max_len=max_len)
    assert isinstance(model, nn.Module)
    _materialize(model, dtype, torch.device(device))
    return model


def token_width(model: CausalLM, config: ModelConfig) -> int:
    """Elements that a token has alive at once inside a layer, at most: the model's own word, or
    that of a plain transformer of these sizes."""
    own = getattr(model, "width", None)
    if own is not None:
        return int(own)
    return sizing.token_width(
        config.hidden_size,
        config.intermediate_size,
        config.num_attention_heads,
        config.num_kv_heads,
        config.head_size,
    )


def _materialize(model: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    """Give parameters storage, tied ones the same, and move constants, which keep their dtype.

    A model may name parameters as `exact`, whose dtype is not changed either.
    """
    exact: frozenset[nn.Parameter] = getattr(model, "exact", frozenset())
    storage: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False):
            if weight not in storage:
                kind = weight.dtype if weight in exact else dtype
                empty = torch.empty(weight.shape, dtype=kind, device=device)
                storage[weight] = nn.Parameter(empty, requires_grad=False)
            setattr(module, name, storage[weight])
        for name, constant in module.named_buffers(recurse=False):
            setattr(module, name, constant.to(device))
