"""Which implementation computes each op of a model, and why, before a weight is read.

The model is built on the meta device and its step written down there, as a rank does at its start.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from ...kernels import ops
from ...kernels.cpu import backend, bindings
from ...kernels.cpu.passes import simplify
from ...kernels.cpu.ranks import Ranks
from ...kernels.cpu.recorder import Line, NotRecordable
from ...kernels.cpu.structures import Epilogue, Kind, NormKind
from ..config import EngineConfig
from ..model.config import ModelConfig, read_config
from ..model.hub import find_model
from ..model.load import choose_dtype
from ..model.mesh import Mesh
from ..model.packing import pack
from ..model.zoo.registry import ARCHITECTURES, CausalLM, build, is_native
from .cache import allocate
from .device import Device, pick
from .forward import Limits
from .graphs import obstacle, write_down
from .worker import choose_kernels

PAGED = ("store_kv", "plan_attention", "paged_attention")
SAMPLING = {
    "greatest": torch.float32,
    "log_softmax": torch.float32,
    "mask": torch.float32,
    "penalize": torch.float32,
    "temper": torch.float32,
    "keyed_uniform": torch.int64,
    "draw_any": torch.float32,
    "draw_cut": torch.float32,
    "draw_nucleus": torch.float32,
    "top_tokens": torch.float32,
    "count_above": torch.float32,
}
"""Ops between logits and tokens, most of them only for rows that ask, and what they read."""

_META = Device(torch.device("meta"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """An op of the modules called `part`, which `layers` layers have; 0 for what is in none.

    `runs`: whose code computes it. `why`: why not the device's own, or not at its best.
    """

    part: str
    op: str
    runs: str
    layers: int = 0
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """How an engine computes: `facts` in words by name, and its ops in the order of a step."""

    facts: dict[str, str]
    parts: tuple[Part, ...]


class _Ground(NamedTuple):
    """What decides whose code computes an op."""

    device: Device
    dtype: torch.dtype
    head_size: int
    block_size: int
    recorded: bool

    def computed(self, op: str, dtype: torch.dtype | None = None) -> tuple[str, str]:
        """Whose code computes an op, and why not the device's own, or not at its best."""
        dtype = dtype or self.dtype
        runs = ops.computed_by(op, self.device.place, dtype, self.device.choice)
        if not self.device.packs_weights:
            torchs = "cuBLAS" if op in ("linear", "logits") else "kernels of torch's own"
            return runs, torchs if runs == "torch" else ""
        gap = backend.gap(self.dtype) if runs == "torch" else None
        if op in PAGED:
            gap = gap or backend.pages_gap(self.head_size, self.block_size)
        if gap or runs == "torch":
            return "torch", gap or ""
        return runs, bindings.left_out() or ""


def explain(config: EngineConfig) -> Explanation:
    """How an engine of this configuration would compute here. Raises ConfigError, LoadError."""
    folder = find_model(
        config.model, revision=config.revision, download_dir=config.download_dir, weights=False
    )
    model = read_config(folder)
    device = pick(config.device)
    dtype = choose_dtype(config.dtype, model, device.place, config.model_impl)
    # A step is written down in a dtype that native ops know: the others differ in no op of it.
    kind = dtype if dtype in backend.DTYPES else torch.bfloat16
    mesh = _mesh(config.tensor_parallel_size)
    built = build(model, mesh, kind, "meta", impl=config.model_impl)
    block_size = config.block_size or device.block_size
    device, why = choose_kernels(config, device, model, dtype, built.cache_specs, block_size)
    head_size = max(spec.head_size for spec in built.cache_specs)
    native = is_native(model, config.model_impl)
    hindered = obstacle(built, device, dtype, eager=config.enforce_eager)
    ground = _Ground(device, dtype, head_size, block_size, not hindered)
    parts: list[Part]
    try:
        found = _own(built, kind, ground) if native else None
        parts = found or _foreign(built, _whose(model, config), ground)
    except NotRecordable as reason:
        parts, hindered = [], hindered or f"they cannot be recorded ({reason})"
    attention, gap = ground.computed("paged_attention")
    code = "shoal's own code" if native else "transformers' code"
    facts = {
        "model": f"{config.model} ({model.architecture}, {code})",
        "computes": f"on {device.place} in {_name(dtype)}, blocks of {block_size} tokens",
        "steps": f"op by op: {hindered}" if hindered else device.replays,
        "attention": f"{attention} ({why or gap})" if why or gap else attention,
        "ranks": _ranks(config, device),
    }
    return Explanation(facts=facts, parts=(*parts, *_sampling(ground)))


def _mesh(size: int) -> Mesh:
    """The first of ranks that are not there."""
    if size == 1:
        return Mesh()
    ranks = Ranks(0, torch.zeros(0, dtype=torch.uint8), torch.full((size,), -1))
    return Mesh(size=size, all_reduce=partial(ops.reduce, ranks, lambda x: x))


def _own(built: CausalLM, dtype: torch.dtype, ground: _Ground) -> list[Part]:
    """The parts of a model in shoal's code, as they are replayed. Raises NotRecordable."""
    assert isinstance(built, nn.Module)
    if ground.device.packs_weights:
        pack(built)
    specs = built.cache_specs
    cache = allocate(specs, tuple(dict.fromkeys(specs)), 2, ground.block_size, dtype, _META)
    limits = Limits(tokens=8, sequences=4, model_len=ground.block_size, width=0)
    recorder, hidden, _ = write_down(built, cache, limits, _followed(built))
    body = list(recorder.lines)
    packed = ground.device.packs_weights and backend.gap(ground.dtype) is None
    for head in (built.logits, built.greatest) if packed else (built.logits,):
        # Ranks join their logits in plain torch, which ends the record.
        with contextlib.suppress(NotRecordable), recorder.recording():
            head(hidden)
    heads = [replace(line, name="logits") for line in recorder.lines[len(body) :]]
    if ground.recorded and ground.device.packs_weights:
        body = simplify(body, recorder.view(hidden))
    return [*_parts(body, ground), *_parts(heads, ground)]


def _followed(model: nn.Module) -> Callable[[], str]:
    """What says which module of a model is running; the model can do nothing else afterwards."""
    inside: list[str] = []

    def within(path: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def entered(*args: Any, **options: Any) -> Any:
            inside.append(path)
            try:
                return call(*args, **options)
            finally:
                inside.pop()

        return entered

    for path, module in model.named_modules():
        for name in ("forward", "add", "logits", "greatest"):
            if hasattr(module, name):
                setattr(module, name, within(path, getattr(module, name)))
    return lambda: inside[-1] if inside else ""


def _parts(lines: Iterable[Line], ground: _Ground) -> list[Part]:
    """Lines of like modules as one."""
    found: dict[Part, set[str]] = {}
    for line in lines:
        layers = re.findall(r"(?:^|\.)(\d+)(?:\.|$)", line.word)[:1]
        for part in _computed(line, ground):
            found.setdefault(part, set()).update(layers)
    return [replace(part, layers=len(layers)) for part, layers in found.items()]


def _computed(line: Line, ground: _Ground) -> list[Part]:
    """Whose code computes a line; a sum over ranks as they may be placed."""
    path = re.sub(r"(^|\.)\d+(?=\.|$)", r"\1*", line.word) or "step"
    op, fused = _op(line)
    if op == "all_reduce":
        sums = ground.device.sums(recorded=ground.recorded and line.kind is not None)
        return [Part(part=path, op=f"{op} {far}".rstrip(), runs=how) for far, how in sums.items()]
    runs, why = ground.computed(op)
    if line.kind is None and runs.startswith("native"):
        runs, why = "torch", "the native op takes whole rows alone"
    return [Part(part=path, op=f"{op} + {fused}" if fused else op, runs=runs, why=why)]


def _op(line: Line) -> tuple[str, str]:
    """What of `ops` a line is, and what it computes besides."""
    fields = line.fields
    if line.kind is None:
        return ("all_reduce" if line.name == "across ranks" else line.name), ""
    if line.kind is Kind.NORM:
        norm = "rms_norm" if fields["kind"] is NormKind.RMS else "layer_norm"
        return f"add_{norm}" if "add" in fields else norm, ""
    if line.kind is Kind.ROPE_STORE:
        first, *others = dict.fromkeys(_op(part)[0] for part in line.parts)
        return first, " + ".join(others)
    if line.kind is Kind.ACTIVATE:
        return _ACTIVATIONS[fields["kind"]], ""
    if fields.get("epilogue") is Epilogue.ARGMAX_ROW:
        return "greatest_logit", ""
    if line.kind is Kind.LINEAR and line.name != "logits":
        return "linear", _ACTIVATIONS.get(fields.get("epilogue", Epilogue.STORE), "")
    return _OPS.get(line.kind, line.name), ""


_OPS = {
    Kind.ADD_ROWS: "add",
    Kind.ANGLES: "rope_angles",
    Kind.ATTEND: "paged_attention",
    Kind.REDUCE: "all_reduce",
}
_ACTIVATIONS = {
    Epilogue.ADD: "add",
    Epilogue.SILU_MUL: "silu_mul",
    Epilogue.GELU_ERF: "gelu",
    Epilogue.GELU_TANH: "gelu",
    Epilogue.RELU: "relu",
}


def _foreign(built: CausalLM, why: str, ground: _Ground) -> list[Part]:
    """The parts of a model in transformers' code, which calls two ops of ours."""
    layers = len(built.cache_specs)
    paged = ("store_kv", "paged_attention")
    found = [(op, *ground.computed(op)) for op in paged]
    return [
        Part(part="all but attention", op="", runs="torch", layers=layers, why=why),
        *(Part(part="attention", op=o, runs=r, layers=layers, why=w) for o, r, w in found),
    ]


def _whose(model: ModelConfig, config: EngineConfig) -> str:
    """Why a model runs in transformers' code."""
    if model.architecture in ARCHITECTURES:
        return f"model_impl is {config.model_impl}"
    return f"{model.architecture} is not among shoal's own: {', '.join(sorted(ARCHITECTURES))}"


def _sampling(ground: _Ground) -> list[Part]:
    found = [(op, *ground.computed(op, dtype)) for op, dtype in SAMPLING.items()]
    indexing = ("copies of rows", "torch", "plain indexing, for rows that ask")
    return [
        Part(part="sampling", op=op, runs=runs, why=why) for op, runs, why in (*found, indexing)
    ]


def _ranks(config: EngineConfig, device: Device) -> str:
    slices, stages = config.tensor_parallel_size, config.pipeline_parallel_size
    sums = ", ".join(f"{how} {far}".rstrip() for far, how in device.sums(recorded=False).items())
    words = [f"{slices} share each layer, sums by {sums}"] if slices > 1 else []
    words += [f"{stages} stages"] if stages > 1 else []
    return "; ".join(words) or "one"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
