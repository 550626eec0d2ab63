"""Any causal language model of transformers, in transformers' own code, over our paged cache."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.conversion_mapping import get_model_conversion_mapping

from ....kernels import ops
from ...errors import ConfigError
from ..batch import ModelInput
from ..config import ModelConfig
from ..mesh import Mesh, Stage
from ..pages import layer_pages
from ..shard import Claim
from . import attention
from .probe import Anatomy, examine
from .renaming import claims_among
from .skeleton import build_skeleton, fix_rope, keep_exact, make_constants, model_class

log = logging.getLogger(__name__)


class Given(nn.Module):
    """Stands where the body was: hands hidden states to the head's own code."""

    def __init__(self, output: type) -> None:
        super().__init__()
        self.output = output
        self.hidden: Tensor | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.output(last_hidden_state=self.hidden)


class FallbackLM(nn.Module):
    """A model of transformers cut in two: its body, and its head with whatever belongs to logits.

    `width`: the most elements a token has alive at once. `exact`: parameters that keep the dtype
    that they have. `leftovers`: patterns of tensors that checkpoints hold and the model needs not.
    `recordable`: its steps are more than ops and views, and cannot be replayed.
    """

    recordable = False

    def __init__(self, model: Any, anatomy: Anatomy, exact: frozenset[nn.Parameter]) -> None:
        super().__init__()
        self.exact = exact
        self.rules = get_model_conversion_mapping(model)
        self.prefix = model.base_model_prefix
        self.leftovers = tuple(model._keys_to_ignore_on_load_unexpected or ())
        self.width = anatomy.width
        self.cache_specs = list(anatomy.specs)
        self.step = attention.Step()
        for layer, path in enumerate(anatomy.attention):
            model.get_submodule(path).seat = attention.Seat(self.step, layer)
        self.body_path = anatomy.body
        self.body = model.get_submodule(anatomy.body)
        self.given = Given(anatomy.output)
        model.set_submodule(anatomy.body, self.given)
        self.head = model

    def forward(self, batch: ModelInput, hidden: Tensor | None = None) -> Tensor:
        self.step.pages = layer_pages(batch, self.cache_specs)
        out = self.body(
            input_ids=batch.tokens[None], position_ids=batch.positions[None], use_cache=False
        )
        found: Tensor = out.last_hidden_state[0]
        return found

    def logits(self, hidden: Tensor) -> Tensor:
        self.given.hidden = hidden[None]
        found: Tensor = self.head(inputs_embeds=hidden[None], use_cache=False).logits[0]
        return found.float()

    def greatest(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        return ops.greatest(self.logits(hidden))

    def tensors(self) -> dict[str, Tensor]:
        """Weights and kept buffers under transformers' names; tied ones under each of theirs."""
        found = {}
        for name, tensor in self.state_dict(keep_vars=True).items():
            part, _, rest = name.partition(".")
            found[f"{self.body_path}.{rest}" if part == "body" else rest] = tensor
        return found

    def claims(self, path: str) -> Iterator[Claim]:
        seen: set[int] = set()
        for name, tensor in self.tensors().items():
            if id(tensor) not in seen:
                seen.add(id(tensor))
                yield Claim(name, tensor.detach())

    def claims_among(self, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[Claim]:
        """Claims by the names that a checkpoint uses, given its tensors' shapes."""
        return claims_among(shapes, self.tensors(), self.rules, self.prefix)


def fallback(
    config: ModelConfig,
    mesh: Mesh,
    dtype: torch.dtype,
    *,
    native: tuple[str, ...] = (),
    stage: Stage | None = None,
    max_len: int | None = None,
) -> FallbackLM:
    """The model that `config` names, in transformers' code, weights on the meta device.

    Raises LoadError that names what cannot be served, ConfigError for more than one rank.
    """
    cls = model_class(config, native)
    for key, size in (
        ("tensor_parallel_size", mesh.size),
        ("pipeline_parallel_size", 1 if stage is None or (stage.first and stage.last) else 2),
    ):
        if size > 1:
            raise ConfigError(
                f"{key}: {config.architecture} runs in transformers' code, which is not cut into "
                f"ranks here; set {key} to 1 and use replicas, or take a native architecture "
                f"({', '.join(native)})",
                key,
            )
    with _one_at_a_time:
        anatomy = _anatomy(config, cls)
        model = build_skeleton(config, cls, attention.NAME, dtype)
    exact = keep_exact(model, dtype)
    make_constants(model, config)
    fix_rope(model, max_len or config.max_length)
    _say_once(config.architecture)
    return FallbackLM(model, anatomy, exact)


@functools.cache
def _say_once(architecture: str) -> None:
    log.info(
        "%s runs in transformers' code: batched and paged as others, but slower than native code",
        architecture,
    )


def _anatomy(config: ModelConfig, cls: Any) -> Anatomy:
    """What the probe finds, once a configuration."""
    key = (cls, repr(config.values))
    if key not in _examined:
        _examined[key] = examine(config, cls)
    return _examined[key]


_examined: dict[tuple[Any, str], Anatomy] = {}
_one_at_a_time = threading.Lock()
"""Building changes what the process has one of: the probe's functions, torch's default dtype."""
