"""What transformers' code of a model does about attention, found by running it without memory.

A few tokens go through the model on the meta device with an attention function that writes down how
it is called, and a mask function that hands the rule of a mask to whoever gets the mask. What a
paged cache cannot serve is refused here, by name, before a weight is read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

from ...errors import LoadError
from ...plan import CacheSpec
from ..config import ModelConfig
from ..promises import LAYERS
from .skeleton import ELSEWHERE, WAYS, build_skeleton, fix_rope

NAME = "shoal_probe"
TOKENS = 4
REASONS = {
    "s_aux": "attention sinks",
    "indices": "attention to chosen tokens (sparse attention)",
    "position_bias": "a bias by position",
    "alibi": "a bias by position (alibi)",
}
"""What modules pass to attention that is not served, in words."""

NOUN = "attention over all tokens or a window of them"

HARMLESS = {
    "dropout",
    "position_ids",
    "cache_position",
    "use_cache",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "return_dict",
    "sliding_window",
    "is_causal",
}
"""What changes nothing here: the window is read off the mask, and what is no causal mask is refused
there."""

Rule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Anatomy:
    """How a model is built.

    `body`: path of the part that ends in hidden states, behind the last norm; the rest is the head.
    `attention`: path of each layer's attending module, in order, and `specs` what they cache.
    `output`: what the body returns. `width`: the most elements a token has alive at once.
    """

    body: str
    attention: tuple[str, ...]
    specs: tuple[CacheSpec, ...]
    output: type
    width: int


@dataclass(slots=True)
class Call:
    """One call of the attention function."""

    module: nn.Module
    heads: int
    kv_heads: int
    size: int
    value_size: int
    mask: Tensor | None
    extra: dict[str, Any]


class Refusal(Exception):
    """Why the fallback cannot serve a model."""


def examine(config: ModelConfig, cls: Any) -> Anatomy:
    """The anatomy of the model that transformers' class `cls` makes of a configuration.

    Raises LoadError that names what cannot be served.
    """
    calls: list[Call] = []
    AttentionInterface.register(NAME, _listener(calls))
    AttentionMaskInterface.register(NAME, _hand_over)
    model = build_skeleton(config, cls, NAME, torch.bfloat16)
    fix_rope(model, None)
    try:
        _refuse_parts(model)
        body, output = _run(model)
        _refuse_calls(model, calls)
        if "position_ids" not in signature(model.get_submodule(body).forward).parameters:
            raise Refusal("it takes no position_ids: its code counts positions by itself")
        return _anatomy(model, calls, body, type(output), config)
    except Refusal as refusal:
        raise LoadError(
            f"{config.path}: {config.architecture} does not run on a paged cache: {refusal}; {WAYS}"
        ) from refusal.__cause__
    finally:
        calls.clear()


def _anatomy(
    model: Any, calls: list[Call], body: str, output: type, config: ModelConfig
) -> Anatomy:
    paths = {id(module): path for path, module in model.named_modules()}
    return Anatomy(
        body=body,
        attention=tuple(paths[id(call.module)] for call in calls),
        specs=tuple(CacheSpec(call.kv_heads, call.size, _window(call, config)) for call in calls),
        output=output,
        width=_width(model.get_submodule(body), calls, model.config.hidden_size),
    )


def _refuse_parts(model: Any) -> None:
    """Refuse what is seen without running anything."""
    described = model.config
    kinds = set(getattr(described, "layer_types", None) or ())
    if strange := sorted(kinds - {*LAYERS}):
        raise Refusal(f"its layer_types name {', '.join(strange)}, and only {NOUN} is served")
    if getattr(described, "num_kv_shared_layers", 0):
        raise Refusal(
            f"num_kv_shared_layers={described.num_kv_shared_layers}: layers that read the cache of "
            f"others are not built yet"
        )
    for path, module in model.named_modules():
        if isinstance(module, nn.modules.conv._ConvNd | nn.RNNBase):
            raise Refusal(
                f"{path} is a {type(module).__name__}: recurrent and convolutional layers keep a "
                f"state that is not built yet"
            )
    if getattr(model, "_is_stateful", False):
        raise Refusal("it is recurrent, and a recurrent state is not built yet")


def _listener(calls: list[Call]) -> Callable[..., tuple[Tensor, None]]:
    """An attention function that writes down how it is called."""

    def attend(
        module: nn.Module,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        attention_mask: Tensor | None = None,
        **extra: Any,
    ) -> tuple[Tensor, None]:
        heads, kv_heads, size, value_size = q.shape[1], k.shape[1], q.shape[3], v.shape[3]
        calls.append(Call(module, heads, kv_heads, size, value_size, attention_mask, extra))
        return q.new_empty(1, q.shape[2], q.shape[1], v.shape[3]), None

    return attend


def _hand_over(*, mask_function: Rule, **_: Any) -> Tensor:
    """A mask without content that carries its rule."""
    mask = torch.empty(1, 1, TOKENS, TOKENS, dtype=torch.bool, device="meta")
    mask.rule = mask_function  # type: ignore[attr-defined]
    return mask


def _run(model: Any) -> tuple[str, Any]:
    """Its body: the path of the outermost part that returns hidden states, and what it returned."""
    bodies: list[tuple[str, Any]] = []

    def note(path: str) -> Callable[[Any, Any, Any], None]:
        return lambda module, args, output: bodies.append((path, output))

    hooks = [
        part.register_forward_hook(note(path))
        for path, part in model.named_modules()
        if path and isinstance(part, transformers.PreTrainedModel)
    ]
    tokens = torch.zeros(1, TOKENS, dtype=torch.long, device="meta")
    try:
        with torch.inference_mode():
            model(
                input_ids=tokens,
                position_ids=torch.arange(TOKENS, device="meta")[None],
                attention_mask=torch.ones_like(tokens),
                use_cache=False,
            )
    except Exception as error:
        raise Refusal(_why(error)) from error
    finally:
        for hook in hooks:
            hook.remove()
    found = [(path, out) for path, out in bodies if hasattr(out, "last_hidden_state")]
    if not found:
        raise Refusal("it has no part that returns hidden states")
    return found[-1]


def _why(error: Exception) -> str:
    first = (str(error).splitlines() or [""])[0]
    return (
        f"its code in transformers {transformers.__version__} does what packed tokens cannot "
        f"({type(error).__name__}: {first}), a newer one may not: pip install -U transformers"
    )


def _refuse_calls(model: Any, calls: list[Call]) -> None:
    """Refuse attention that is not there, or is not plain."""
    layers = model.config.num_hidden_layers
    if not calls:
        raise Refusal(ELSEWHERE)
    if len({id(call.module) for call in calls}) < len(calls):
        raise Refusal("some of its modules attend more than once a token, over several caches")
    if len(calls) != layers:
        raise Refusal(
            f"{len(calls)} of its {layers} layers attend through transformers' attention "
            f"interface, and what the others keep is not built"
        )
    for call in calls:
        if call.size != call.value_size:
            raise Refusal(
                f"its keys have {call.size} columns a head and its values {call.value_size} (as "
                f"in latent attention, MLA)"
            )
        if call.heads % call.kv_heads:
            raise Refusal(f"{call.heads} query heads on {call.kv_heads} key-value heads")
        for name, value in call.extra.items():
            if name in ("scaling", "softcap") or name in HARMLESS or value is None:
                continue
            what = REASONS.get(name, "of which nothing is known here")
            raise Refusal(f"it passes {name!r} to attention, {what}")


def _window(call: Call, config: ModelConfig) -> int | None:
    """How many tokens a call's mask lets a token see, itself included; None where all before it.

    Tried far beyond the model's own length, and at two places, so that a chunk is no window.
    """
    rule = getattr(call.mask, "rule", None)
    if call.mask is None or rule is None:
        raise Refusal("it makes attention masks of its own, whose rule cannot be read")
    far = 2 * config.max_length + 2
    seen = [_first_and_last(rule, place) for place in (far, far - 1, far // 2 + 1)]
    if any(last != 0 for _, last in seen):
        raise Refusal("its tokens see what comes after them: it is no causal model")
    widths = {first for first, _ in seen}
    if widths == {None}:
        return None
    if len(widths) > 1 or None in widths:
        raise Refusal("its mask is neither causal nor a sliding window (chunked attention?)")
    return widths.pop()


def _first_and_last(rule: Rule, place: int) -> tuple[int | None, int]:
    """Of what a token at `place` sees, how many from the first on (None: all), and how far beyond
    itself."""
    keys = torch.arange(place + 2)
    zero = torch.tensor(0)
    try:
        visible = rule(zero, zero, torch.tensor(place), keys).expand(len(keys)).nonzero().flatten()
    except RuntimeError as error:
        raise Refusal("its mask follows from more than positions (chunked attention?)") from error
    first, last = int(visible[0]), int(visible[-1])
    if len(visible) != last - first + 1:
        raise Refusal("its mask has gaps")
    return (place - first + 1 if first else None), last - place


def _width(body: nn.Module, calls: list[Call], hidden: int) -> int:
    """Elements that a token has alive at once inside a layer, at most, from the shapes of weights.

    A token's experts work side by side.
    """
    described: Any = body.config
    names = ("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_topk", "moe_k")
    experts = max(int(getattr(described, name, None) or 1) for name in names)
    feed_forward = 0
    for module in body.modules():
        if isinstance(module, nn.Embedding):
            continue
        for weight in module.parameters(recurse=False):
            if weight.dim() == 2:
                feed_forward = max(feed_forward, *weight.shape)
            elif weight.dim() == 3:
                feed_forward = max(feed_forward, experts * max(weight.shape[1:]))
    attention = max((2 * call.heads + 2 * call.kv_heads) * call.size for call in calls)
    return 3 * hidden + max(attention, 3 * feed_forward)
