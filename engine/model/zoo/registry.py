"""Which architecture is which class, and how one is built."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from ...errors import LoadError
from ...plan import CacheSpec
from ..batch import ModelInput
from ..config import ModelConfig
from ..mesh import Mesh, Stage
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


ARCHITECTURES: dict[str, Callable[..., CausalLM]] = {
    "FalconForCausalLM": falcon,
    "GPT2LMHeadModel": gpt2,
    "LlamaForCausalLM": llama,
    "MistralForCausalLM": mistral,
    "Qwen2ForCausalLM": qwen2,
    "Qwen3ForCausalLM": qwen3,
    "RWForCausalLM": falcon,
}


def build(
    config: ModelConfig,
    mesh: Mesh,
    dtype: torch.dtype,
    device: torch.device | str,
    *,
    stage: Stage | None = None,
    max_len: int | None = None,
) -> CausalLM:
    """The model that `config` names, this rank's slices, weights not yet loaded.

    On device "meta" it takes no memory. `stage`: only that (all of it by default). `max_len`: the
    longest text that the engine takes (the model's own by default). Raises LoadError for an
    architecture that is not known, ConfigError where the ranks cannot share it evenly.
    """
    name = config.architecture
    if name not in ARCHITECTURES:
        raise LoadError(
            f"{config.path}: architecture {name!r} is not known; known are "
            f"{', '.join(sorted(ARCHITECTURES))}"
        )
    if config.get("quantization_config"):
        raise LoadError(
            f"{config.path}: quantized weights are not built yet; use the checkpoint's "
            f"bfloat16 or float32 form"
        )
    model = ARCHITECTURES[name](config, mesh, stage=stage, max_len=max_len)
    assert isinstance(model, nn.Module)
    _materialize(model, dtype, torch.device(device))
    return model


def num_bytes(model: CausalLM) -> int:
    """Bytes of this rank's weights; true on the meta device too."""
    assert isinstance(model, nn.Module)
    return sum(weight.nbytes for weight in model.parameters())


def _materialize(model: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    """Give parameters storage and move constants, which stay float32."""
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False):
            storage = torch.empty(weight.shape, dtype=dtype, device=device)
            setattr(module, name, nn.Parameter(storage, requires_grad=False))
        for name, constant in module.named_buffers(recurse=False):
            setattr(module, name, constant.to(device))
