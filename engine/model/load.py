"""From a checkpoint to a model on its device, each tensor straight to its place."""

from __future__ import annotations

import hashlib
import logging
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from ...kernels import ops
from ..errors import ConfigError, LoadError
from .config import ModelConfig, read_config
from .hub import find_model
from .mesh import Mesh, Stage
from .packing import pack
from .promises import refuse_next_tokens
from .shard import Claim, claims, claims_among
from .tensors import PLAIN_DTYPES, opened
from .weights import Entry, WeightFile, digest, weight_files
from .zoo.registry import CausalLM, build

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]

FLOAT32_BYTES = 1 << 30
"""On CPUs a model whose weights in float32 take less than this is served in float32."""

DTYPES = {
    "float32": torch.float32,
    "float": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "half": torch.float16,
}

ROPE = "inv_freq"
"""What tables of rope frequencies are called, here and in transformers' code."""

DUMMY_SCALE = 0.02
DUMMY_PERIOD = 1_000_003
"""A prime: no two rows of a table are a whole number of periods apart, so none are equal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model ready to run.

    `digest` names what its text follows from but for rounding: the weights, the dtype they are
    served in, and the constants of its rope. It does not tell instruction sets, numbers of ranks or
    recorded steps apart: a stream had better go on with other roundings than end.
    """

    model: CausalLM
    config: ModelConfig
    dtype: torch.dtype
    digest: str


def load(
    model: str | Path,
    *,
    mesh: Mesh | None = None,
    stage: Stage | None = None,
    device: torch.device | str = "cpu",
    dtype: str = "auto",
    load_format: str = "auto",
    seed: int = 0,
    max_len: int | None = None,
    model_impl: str = "auto",
    revision: str | None = None,
    download_dir: str | None = None,
    progress: Progress | None = None,
    packed: bool = False,
) -> LoadedModel:
    """Build this rank's slice of a model, or of one stage of it, and fill it from its checkpoint.

    `load_format` is a key of `formats.FORMATS`, or "dummy", which needs config.json alone and draws
    weights from `seed`. `progress` is called with (bytes done, bytes in all). `packed`: weights are
    brought into the order that its device computes best in. Raises LoadError, ConfigError.
    """
    dummy = load_format == "dummy"
    folder = find_model(
        str(model),
        revision=revision,
        download_dir=download_dir,
        load_format=load_format,
    )
    config = read_config(folder)
    files = [] if dummy else weight_files(folder, load_format)
    chosen = choose_dtype(dtype, config, torch.device(device), model_impl)
    built = build(
        config, mesh or Mesh(), chosen, device, stage=stage, max_len=max_len, impl=model_impl
    )
    assert isinstance(built, nn.Module)
    if dummy:
        draw(claims(built), seed)
    else:
        elsewhere = _names_claimed(config) if stage is not None else frozenset()
        shapes, leftovers = _shapes(files), _leftovers(config, built)
        refuse_next_tokens(config, shapes, leftovers)
        fill(claims_among(built, shapes), files, progress or _silent, leftovers, elsewhere)
    if packed:
        pack(built)
    # Rope frequencies may follow from max_len, and then other text follows from them. Other
    # constants follow from config.json, and ranks may hold slices of them.
    ropes = [f"{name} {c.tolist()}" for name, c in built.named_buffers() if name.endswith(ROPE)]
    words = (f"dummy {seed}" if dummy else "", str(chosen), *ropes)
    return LoadedModel(
        model=built, config=config, dtype=chosen, digest=digest(config.text, files, *words)
    )


def _names_claimed(config: ModelConfig) -> frozenset[str]:
    """The tensors that the whole model claims, whichever stage holds them."""
    whole = build(config, Mesh(), torch.float32, "meta")
    assert isinstance(whole, nn.Module)
    return frozenset(claim.name for claim in claims(whole))


def _silent(done: int, total: int) -> None:
    pass


@cache
def _warn_of_slow(dtype: torch.dtype) -> None:
    log.warning(
        "%s is computed in as asked, and slowly: this device has no fast kernels for it. bfloat16 "
        "takes the same memory; dtype: auto chooses",
        str(dtype).removeprefix("torch."),
    )


def choose_dtype(
    name: str, config: ModelConfig, device: torch.device, impl: str = "auto"
) -> torch.dtype:
    """The dtype to serve in.

    A name is taken at its word. "auto" is the checkpoint's own dtype, but float16 on a GPU that
    lacks bfloat16; on CPUs float32 while the weights take less than `FLOAT32_BYTES` in it, and
    bfloat16 beyond, where float16 would be slow. Raises ConfigError for what the device lacks.
    """
    if name != "auto":
        if gap := ops.dtype_gap(DTYPES[name], device):
            raise ConfigError(f"dtype={name} cannot be served: {gap}", "dtype")
        if ops.is_slow(DTYPES[name], device):
            _warn_of_slow(DTYPES[name])
        return DTYPES[name]
    own = DTYPES.get(config.dtype, torch.float32)
    model = build(config, Mesh(), torch.float32, "meta", impl=impl)
    assert isinstance(model, nn.Module)
    size = sum(weight.nbytes for weight in model.parameters())
    chosen = ops.serving_dtype(own, device, small=size < FLOAT32_BYTES)
    if own is torch.float16 and chosen is not own:
        served = str(chosen).removeprefix("torch.")
        log.info("float16 weights are served in %s on CPUs; dtype: float16 keeps them", served)
    return chosen


def fill(
    wanted: Iterable[Claim],
    files: Iterable[WeightFile],
    progress: Progress = _silent,
    leftovers: re.Pattern[str] | None = None,
    elsewhere: frozenset[str] = frozenset(),
) -> None:
    """Copy every claimed piece to its place, file after file in the order on disk.

    No claim is kept, so that whoever moves a filled weight frees its memory.

    Raises LoadError naming a tensor that nobody claims (unless `leftovers` matches it or it is one
    of `elsewhere`, which other ranks claim), a claim that no file fills, a wrong shape, or a dtype
    that is no plain float.
    """
    by_name: dict[str, list[Claim]] = defaultdict(list)
    total = 0
    for claim in wanted:
        by_name[claim.name].append(claim)
        total += claim.into.nbytes
    trunks = {name.partition(".")[0] for name in by_name}
    done = 0
    strangers: list[str] = []
    for file in files:
        with opened(file) as tensors:
            for name, entry in tensors.entries.items():
                spellings = tuple(_spellings(name, trunks))
                claimed = next((n for n in spellings if n in by_name), None)
                if claimed is None:
                    if elsewhere.isdisjoint(spellings):
                        strangers.append(name)
                    continue
                for claim in by_name.pop(claimed):
                    _copy(claim, tensors.whole(name), entry, f"{name} in {file.path}")
                    done += claim.into.nbytes
                    progress(done, total)
    unknown = [n for n in strangers if not (leftovers and leftovers.search(n))]
    if unknown:
        raise LoadError(
            f"the checkpoint holds {_names(unknown)}, which the model has no place for: "
            f"config.json and weights do not belong together; fetch both again, from one revision"
        )
    if by_name:
        raise LoadError(
            f"the checkpoint lacks {_names(list(by_name))}, which the model needs: it is not "
            f"whole, or config.json is another model's; fetch both again, from one revision"
        )


def _spellings(name: str, trunks: Iterable[str]) -> Iterator[str]:
    """What a tensor of a checkpoint may be called in the model.

    Checkpoints saved without the head lack the first word: `h.0.ln_1.weight` is
    `transformer.h.0.ln_1.weight`.
    """
    yield name
    yield from (f"{trunk}.{name}" for trunk in trunks)


def _copy(claim: Claim, tensor: object, entry: Entry, what: str) -> None:
    if entry.dtype not in PLAIN_DTYPES.values():
        raise LoadError(
            f"{what} is of type {entry.dtype}, and plain floats were expected: quantized or sparse "
            f"weights are not built yet; use the checkpoint's bfloat16 or float16 form"
        )
    try:
        cuts = claim.cuts(entry.shape)
    except (ValueError, IndexError):
        raise LoadError(
            f"{what} has the shape {list(entry.shape)}, of which a piece of "
            f"{list(claim.place.shape)} was expected: config.json and weights do not belong "
            f"together"
        ) from None
    for cut in cuts:
        claim.place[cut.target].copy_(tensor[cut.source])  # type: ignore[index]


def _names(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(repr(name) for name in names[:3]) + more


def _shapes(files: Iterable[WeightFile]) -> dict[str, tuple[int, ...]]:
    """What a checkpoint holds."""
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        if file.entries is not None:
            shapes |= {name: entry.shape for name, entry in file.entries.items()}
            continue
        with opened(file) as tensors:
            shapes |= {name: entry.shape for name, entry in tensors.entries.items()}
    return shapes


def _leftovers(config: ModelConfig, model: nn.Module) -> re.Pattern[str]:
    """Tensors that checkpoints hold and models need not: rotary tables, GPT-2's causal masks, a
    tied head, and what the model says itself."""
    rules = [
        r"\.rotary_emb\.inv_freq$",
        r"(^|\.)h\.\d+\.attn\.(masked_)?bias$",
        *getattr(model, "leftovers", ()),
    ]
    if config.get("tie_word_embeddings", False):
        rules.append(r"^lm_head\.weight$")
    return re.compile("|".join(rules))


def draw(wanted: Iterable[Claim], seed: int) -> None:
    """Fill claims with random numbers that follow from the seed, the tensor's name and the share.

    Matrices and biases are normal with a deviation of 0.02; norms, the other vectors, are one.
    """
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(DUMMY_PERIOD, generator=generator) * DUMMY_SCALE
    cast: dict[tuple[torch.dtype, torch.device], Tensor] = {}
    for claim in wanted:
        into = claim.into
        if into.dim() == 1 and not claim.name.endswith(".bias"):
            into.fill_(1.0)
            continue
        key = (into.dtype, into.device)
        if key not in cast:
            cast[key] = base.to(into.device, into.dtype)
        part = f"{claim.name} {claim.runs.start} {claim.share}/{claim.of}"
        word = hashlib.blake2b(part.encode(), digest_size=8)
        _tile(into, cast[key], int.from_bytes(word.digest(), "little") % DUMMY_PERIOD)


def _tile(into: Tensor, period: Tensor, offset: int) -> None:
    """Repeat `period` over `into`, beginning at `offset` of it."""
    flat = into.view(-1)
    place, first = 0, offset
    while place < len(flat):
        piece = period[first : first + len(flat) - place]
        flat[place : place + len(piece)] = piece
        place, first = place + len(piece), 0
