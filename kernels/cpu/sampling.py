"""The ops of sampling over the native library; the same tokens as `..sampling` draws.

Sums are rounded in another order than torch rounds them, so that a draw can differ where a uniform
falls within a rounding of the border between two tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import sampling
from .binding import bind
from .bindings import OpFailed, has
from .structures import Kind, Sizes, Step, step
from .threads import pool_for


def _run(kind: Kind, num_rows: int, /, **fields: Any) -> None:
    args = bind(kind, fields)
    pool = pool_for(num_rows * fields.get("columns", 1))
    if pool.run((Step * 1)(step(kind, args)), Sizes(0, num_rows, 0)):
        raise OpFailed(kind)


def _takes(*matrices: Tensor) -> bool:
    """Whether these are of a form that the library reads."""
    return has(Kind.DRAW) and all(
        x.dim() == 2 and x.dtype == torch.float32 and x.stride(1) == 1 for x in matrices
    )


def keyed_uniform(key: Tensor, position: Tensor, sibling: Tensor, draw: int = 0) -> Tensor:
    if not has(Kind.KEYED_UNIFORM):
        return sampling.keyed_uniform(key, position, sibling, draw)
    out = torch.empty(len(key), dtype=torch.float64)
    keys, positions, siblings = (x.contiguous() for x in (key, position, sibling))
    fields = {"keys": keys, "positions": positions, "siblings": siblings}
    _run(Kind.KEYED_UNIFORM, len(key), out=out, draw=draw, **fields)
    return out


def temper(logits: Tensor, rows: Tensor, top: Tensor, temperature: Tensor) -> Tensor:
    if not _takes(logits):
        return sampling.temper(logits, rows, top, temperature)
    out = logits.new_empty(len(rows), logits.shape[1])
    rows, top, temperature = (x.contiguous() for x in (rows, top, temperature))
    fields = {"rows": rows, "top": top, "temperature": temperature, "columns": logits.shape[1]}
    _run(Kind.TEMPER, len(rows), logits=logits, out=out, **fields)
    return out


def greatest(logits: Tensor) -> tuple[Tensor, Tensor]:
    if not _takes(logits):
        return sampling.greatest(logits)
    tokens = torch.empty(len(logits), dtype=torch.int64)
    _run(Kind.ARGMAX, len(logits), logits=logits, tokens=tokens, columns=logits.shape[1])
    return logits.gather(1, tokens[:, None])[:, 0], tokens


def log_softmax(x: Tensor) -> Tensor:
    if not _takes(x):
        return sampling.log_softmax(x)
    out = torch.empty_like(x)
    _run(Kind.LOG_SOFTMAX, len(x), x=x, out=out, columns=x.shape[1])
    return out


def mask(
    logits: Tensor,
    rows: Tensor,
    allowed: Tensor,
    which: Tensor,
    starts: Tensor,
    ids: Tensor,
    amounts: Tensor,
) -> Tensor:
    if not _takes(logits):
        return sampling.mask(logits, rows, allowed, which, starts, ids, amounts)
    broken = torch.empty(len(rows), dtype=torch.bool)
    tables = (rows, allowed, which, starts, ids, amounts)
    names = ("rows", "allowed", "which", "starts", "ids", "amounts")
    fields = {name: x.contiguous() for name, x in zip(names, tables, strict=True)}
    sizes = {"words": allowed.shape[1], "columns": logits.shape[1]}
    _run(Kind.MASK, len(rows), logits=logits, broken=broken, **fields, **sizes)
    return broken


def penalize(
    logits: Tensor,
    rows: Tensor,
    ids: Tensor,
    num_prompt: Tensor,
    num_tokens: Tensor,
    repetition: Tensor,
    frequency: Tensor,
    presence: Tensor,
) -> None:
    columns = (rows, num_prompt, num_tokens, repetition, frequency, presence)
    if not _takes(logits) or ids.dtype != torch.int32 or ids.stride(1) != 1:
        rows, num_prompt, num_tokens, *penalties = columns
        sampling.penalize(logits, rows, ids, num_prompt, num_tokens, *penalties)
        return
    names = ("rows", "num_prompt", "num_tokens", "repetition", "frequency", "presence")
    fields = {name: x.contiguous() for name, x in zip(names, columns, strict=True)}
    sizes = {"ids_stride": ids.stride(0), "columns": logits.shape[1]}
    _run(Kind.PENALIZE, len(rows), logits=logits, ids=ids, **fields, **sizes)


def draw_any(x: Tensor, u: Tensor) -> Tensor:
    return _draw(x, u) if _takes(x) else sampling.draw_any(x, u)


def draw_cut(
    x: Tensor, u: Tensor, top_k: Tensor, most: int, min_p: Tensor, top_p: Tensor
) -> Tensor:
    if not _takes(x):
        return sampling.draw_cut(x, u, top_k, most, min_p, top_p)
    return _draw(x, u, top_k=top_k, min_p=min_p, top_p=top_p)


def draw_nucleus(x: Tensor, u: Tensor, top_p: Tensor) -> Tensor:
    return _draw(x, u, top_p=top_p) if _takes(x) else sampling.draw_nucleus(x, u, top_p)


def _draw(x: Tensor, u: Tensor, **limits: Tensor) -> Tensor:
    tokens = torch.empty(len(x), dtype=torch.int64)
    fields = {name: limit.contiguous() for name, limit in limits.items()}
    _run(Kind.DRAW, len(x), x=x, u=u.contiguous(), tokens=tokens, columns=x.shape[1], **fields)
    return tokens


def top_tokens(values: Tensor, most: int) -> tuple[Tensor, Tensor]:
    if not _takes(values):
        return sampling.top_tokens(values, most)
    rows, columns = values.shape
    most = min(most, columns)
    ids = torch.empty(rows, most, dtype=torch.int64)
    kept = values.new_empty(rows, most)
    _run(Kind.TOP_TOKENS, rows, values=values, ids=ids, kept=kept, columns=columns, most=most)
    return ids, kept


def count_above(values: Tensor, bounds: Tensor) -> Tensor:
    if not _takes(values):
        return sampling.count_above(values, bounds)
    counts = torch.empty(bounds.shape, dtype=torch.int64)
    sizes = {"columns": values.shape[1], "num": bounds.shape[1]}
    fields = {"values": values, "bounds": bounds.contiguous(), "counts": counts}
    _run(Kind.COUNT_ABOVE, len(values), **fields, **sizes)
    return counts
