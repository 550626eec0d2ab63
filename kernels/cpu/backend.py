"""The ops of `ops` over the native library, each as a step of its own.

Two things can become of an op. On tensors with memory it runs at once, on the calling thread's
pool. On those of a step that is being recorded it becomes a line of that record. What the library
does not take falls to `reference`, one op at a time; a step that is being recorded then keeps a
call of it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from .. import reference
from . import recorder
from .binding import bind
from .bindings import OpFailed, absence, has
from .panels import DTYPES as NATIVE
from .panels import Packed
from .ranks import Ranks
from .structures import Epilogue, Kind, NormKind, Sizes, Step, step
from .threads import current_pool

DTYPES = tuple(NATIVE)

_floats: Any = WeakTensorKeyDictionary()


def embed(tokens: Tensor, weight: Tensor | Packed, *, start: int = 0) -> Tensor:
    if not has(Kind.EMBED) or not _flat(weight):
        made = partial(_new, tokens, weight.shape[1], weight.dtype)
        return _fall_back("embed", made, tokens, weight, start=start)
    rows, columns = weight.shape
    out = _new(tokens, columns, weight.dtype)
    place = {"panels": weight} if isinstance(weight, Packed) else {"table": weight}
    sizes = {"start": start, "rows": rows, "columns": columns}
    _run(Kind.EMBED, tokens, {"out": out, "tokens": tokens, **place, **sizes})
    return out


def linear(x: Tensor, weight: Tensor | Packed, bias: Tensor | None = None) -> Tensor:
    if not isinstance(weight, Packed) or not _flat(x):
        made = partial(_new, x, len(weight), x.dtype)
        return _fall_back("linear", made, x, weight, bias)
    return _linear(x, weight, bias, x.dtype)


def gated_linear(x: Tensor, weight: Packed, bias: Tensor | None = None) -> Tensor:
    if not _flat(x):
        x = x.contiguous()
    out = _new(x, len(weight) // 2, x.dtype)
    silu = {"bias": _float32(bias), "epilogue": Epilogue.SILU_MUL}
    _run(Kind.LINEAR, x, {"x": x, "out": out, "weight": weight, **silu})
    return out


def logits(x: Tensor, weight: Tensor | Packed) -> Tensor:
    if not isinstance(weight, Packed) or not _flat(x):
        made = partial(_new, x, len(weight), torch.float32)
        return _fall_back("logits", made, x, weight)
    return _linear(x, weight, None, torch.float32)


def greatest_logit(x: Tensor, weight: Packed) -> tuple[Tensor, Tensor]:
    x = x if _flat(x) else x.contiguous()
    top = torch.empty(len(x), dtype=torch.float32)
    tokens = torch.empty(len(x), dtype=torch.int64)
    chosen = {"out": tokens, "top": top, "epilogue": Epilogue.ARGMAX_ROW}
    _run(Kind.LINEAR, x, {"x": x, "weight": weight, **chosen})
    return top, tokens


def _linear(x: Tensor, weight: Packed, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    out = _new(x, len(weight), dtype)
    fields = {"x": x, "out": out, "weight": weight, "bias": _float32(bias)}
    _run(Kind.LINEAR, x, fields)
    return out


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    if not has(Kind.NORM) or not _grouped(x):
        return _fall_back("rms_norm", partial(_like, x), x, weight, eps)
    return _norm(x, None, weight, None, eps, NormKind.RMS)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    if not has(Kind.NORM) or not (_flat(x) and _flat(residual)):
        return _fall_back("add_rms_norm", partial(_like, x), x, residual, weight, eps)
    return _norm(residual, x, weight, None, eps, NormKind.RMS)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    if not has(Kind.NORM) or not _grouped(x):
        return _fall_back("layer_norm", partial(_like, x), x, weight, bias, eps)
    return _norm(x, None, weight, bias, eps, NormKind.LAYER)


def add_layer_norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    if not has(Kind.NORM) or not (_flat(x) and _flat(residual)):
        return _fall_back("add_layer_norm", partial(_like, x), x, residual, weight, bias, eps)
    return _norm(residual, x, weight, bias, eps, NormKind.LAYER)


def _norm(
    x: Tensor, add: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float, kind: NormKind
) -> Tensor:
    groups = x.shape[1] if x.dim() == 3 else 1
    columns = x.shape[-1]
    out = _new(x, groups * columns, x.dtype)
    fields = {
        "x": x,
        "add": add,
        "out": out,
        "weight": _float32(weight),
        "bias": _float32(bias),
        "columns": columns,
        "groups": groups,
        "x_step": x.stride(1) if x.dim() == 3 else 0,
        "out_step": columns,
        "eps": eps,
        "kind": kind,
    }
    _run(Kind.NORM, x, fields)
    return out.view(x.shape)


def add(x: Tensor, total: Tensor) -> None:
    if not has(Kind.ADD_ROWS) or not (_flat(x) and _flat(total)):
        _fall_back("add", None, x, total)
        return
    _run(Kind.ADD_ROWS, x, {"x": x, "into": total, "columns": x.shape[1]})


def rope_angles(
    positions: Tensor, inv_freq: Tensor, scale: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """In float32 whatever `dtype` is, for the native `rope` reads nothing else."""
    if not (has(Kind.ANGLES) and has(Kind.ROPE)):
        made = partial(_new, positions, len(inv_freq), dtype)
        given = (positions, inv_freq, scale, dtype)
        cos, sin = _fall_back("rope_angles", lambda: (made(), made()), *given)
        return cos, sin
    columns = len(inv_freq)
    cos, sin = (_new(positions, columns, torch.float32, packed=True) for _ in range(2))
    fields = {
        "positions": positions,
        "inv_freq": inv_freq,
        "cos": cos,
        "sin": sin,
        "columns": columns,
        "scale": scale,
    }
    _run(Kind.ANGLES, positions, fields)
    return cos, sin


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Angles must be float32 and in one piece each: others fall back."""
    narrow = cos.dtype is not torch.float32 or not (cos.is_contiguous() and sin.is_contiguous())
    if not has(Kind.ROPE) or narrow or not _grouped(x):
        _fall_back("rope", None, x, cos, sin)
        return
    fields = {
        "x": x,
        "cos": cos,
        "sin": sin,
        "heads": x.shape[1],
        "step": x.stride(1),
        "angles": cos.shape[1],
    }
    _run(Kind.ROPE, x, fields)


def native_pages(dtype: torch.dtype, head_size: int, block_size: int) -> bool:
    """Whether a cache of such pages is laid out as native.h says; else as `ops.store_kv` does."""
    return gap(dtype) is None and pages_gap(head_size, block_size) is None


def gap(dtype: torch.dtype) -> str | None:
    """Why torch computes ops of this dtype here; None where the library does."""
    if missing := absence():
        return f"there are no native ops: {missing}"
    return None if dtype in NATIVE else "native ops are for float32 and bfloat16"


def pages_gap(head_size: int, block_size: int) -> str | None:
    """Why native.h has no layout for a cache of such pages; None where it has."""
    if head_size > 256:
        return f"native heads are of at most 256, and these are of {head_size}"
    if block_size != 16 and (block_size < 1 or block_size % 32):
        return f"native blocks are 16 or a multiple of 32 tokens, and these are of {block_size}"
    return None


def page_columns(dtype: torch.dtype, head_size: int, block_size: int) -> int:
    """How many columns a cache has for a head: native pages come in multiples of 16."""
    return -(-head_size // 16) * 16 if native_pages(dtype, head_size, block_size) else head_size


def _native(kv: Tensor) -> bool:
    whole = kv.is_contiguous() and not kv.shape[4] % 16
    return whole and native_pages(kv.dtype, kv.shape[4], kv.shape[2])


def store_kv(k: Tensor, v: Tensor, kv: Tensor, slots: Tensor) -> None:
    if not _native(kv):
        _fall_back("store_kv", None, k, v, kv, slots)
        return
    k, v = _side_by_side(k), _side_by_side(v)
    head_size = k.shape[2]
    fields = {"k": k, "v": v, "slots": slots, "cache": kv, "head_size": head_size}
    _run(Kind.STORE_KV, k, fields)


def plan_attention(kv: Tensor, *args: Any, **options: Any) -> Any:
    if _native(kv):
        return None
    return _fall_back("plan_attention", recorder.Answer, kv, *args, **options)


def paged_attention(
    q: Tensor,
    kv: Tensor,
    block_table: Tensor,
    query_start: Tensor,
    kv_len: Tensor,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    alibi: Tensor | None = None,
    plan: Any = None,
) -> Tensor:
    """Over pages as `store_kv` fills them; only those of the reference need a `plan`."""
    options = {"scale": scale, "window": window, "softcap": softcap, "alibi": alibi}
    if not _native(kv):
        given = (q, kv, block_table, query_start, kv_len)
        return _fall_back("paged_attention", partial(_like, q), *given, **options, plan=plan)
    q = _side_by_side(q)
    out = _new(q, q.shape[1] * q.shape[2], q.dtype)
    fields = {
        "q": q,
        "out": out,
        "cache": kv,
        "block_table": block_table,
        "table_stride": block_table.stride(0),
        "query_start": query_start,
        "kv_len": kv_len,
        "alibi": alibi,
        "alibi_stride": 0 if alibi is None else alibi.stride(0),
        "heads": q.shape[1],
        "head_size": q.shape[2],
        "window": window or 0,
        "scale": scale,
        "softcap": softcap or 0.0,
    }
    _run(Kind.ATTEND, q, fields, sequences=len(kv_len))
    return out.view(q.shape)


def silu_mul(x: Tensor) -> Tensor:
    return _activate("silu_mul", x, Epilogue.SILU_MUL)


def gelu(x: Tensor, *, tanh: bool = False) -> Tensor:
    kind = Epilogue.GELU_TANH if tanh else Epilogue.GELU_ERF
    return _activate("gelu", x, kind, tanh=tanh)


def relu(x: Tensor) -> Tensor:
    return _activate("relu", x, Epilogue.RELU)


def _activate(op: str, x: Tensor, kind: Epilogue, **options: Any) -> Tensor:
    columns = x.shape[1] // 2 if kind is Epilogue.SILU_MUL else x.shape[1]
    if not has(Kind.ACTIVATE) or not _flat(x):
        return _fall_back(op, partial(_new, x, columns, x.dtype), x, **options)
    out = _new(x, columns, x.dtype)
    _run(Kind.ACTIVATE, x, {"x": x, "out": out, "columns": columns, "kind": kind})
    return out


def gather(x: Tensor, rows: Tensor) -> Tensor:
    if not has(Kind.GATHER) or not _flat(x):
        return _fall_back("gather", partial(_new, rows, x.shape[1], x.dtype), x, rows)
    out = _new(rows, x.shape[1], x.dtype)
    fields = {"x": x, "out": out, "rows": rows, "columns": x.shape[1]}
    _run(Kind.GATHER, rows, fields)
    return out


def across(call: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    found: Tensor = _call("across ranks", call, partial(_like, x), x)
    return found


def reduce(ranks: Ranks, call: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    if recorder.current(x) is None or not has(Kind.REDUCE) or not _flat(x):
        return across(call, x)
    fields = {
        "x": x,
        "slab": ranks.slab,
        "pipes": ranks.pipes,
        "slab_bytes": ranks.slab.nbytes,
        "columns": x.shape[1],
        "rank": ranks.rank,
        "ranks": len(ranks.pipes),
    }
    _run(Kind.REDUCE, x, fields)
    return x


def _flat(x: Tensor | Packed) -> bool:
    """Whether x is rows of its own, each in one piece."""
    return isinstance(x, Packed) or (
        x.dim() == 2 and (x.stride(1) == 1 or x.shape[1] < 2) and x.dtype in NATIVE
    )


def _grouped(x: Tensor) -> bool:
    """Whether x is rows of pieces at even steps, [T, C] or [T, H, C]."""
    whole = x.dim() in (2, 3) and (x.stride(-1) == 1 or x.shape[-1] < 2)
    return whole and x.dtype in NATIVE


def _side_by_side(x: Tensor) -> Tensor:
    """[T, H, D] with the heads of a token in one piece."""
    whole = x.stride(2) == 1 and (x.stride(1) == x.shape[2] or x.shape[1] == 1)
    return x if whole else x.contiguous()


def _new(like: Tensor, columns: int, dtype: torch.dtype, *, packed: bool = False) -> Tensor:
    """Rows to be written, as many as `like` has; `packed`: one after the other."""
    recording = recorder.current(like)
    if recording is not None:
        return recording.rows(like, columns, dtype, packed=packed)
    return torch.empty((len(like), columns), dtype=dtype)


def _like(x: Tensor) -> Tensor:
    """Rows to be written, in the shape and dtype of x, [T, ...]."""
    columns = x.shape[1:].numel()
    return _new(x, columns, x.dtype).view(x.shape)


def _float32(x: Tensor | None) -> Tensor | None:
    """A vector that an op reads in float32, converted once."""
    if x is None or (x.dtype is torch.float32 and x.is_contiguous()):
        return x
    if x not in _floats:
        _floats[x] = x.detach().to(torch.float32, memory_format=torch.contiguous_format)
    found: Tensor = _floats[x]
    return found


def _run(kind: Kind, like: Tensor, fields: dict[str, Any], *, sequences: int = 0) -> None:
    """Compute a step now, or keep it; `like` has its number of rows."""
    recording = recorder.current(like)
    if recording is not None:
        recording.step(kind, fields, like)
        return
    rows = len(like)
    if not rows:
        return
    args = bind(kind, fields)
    sizes = Sizes(rows, rows, sequences)
    if current_pool().run((Step * 1)(step(kind, args)), sizes):
        raise OpFailed(kind)


def _fall_back(op: str, makes: Callable[[], Any] | None, *args: Any, **options: Any) -> Tensor:
    """The op in plain torch. `makes()` gives what takes its result where a step is recorded."""
    given = tuple(x.rows() if isinstance(x, Packed) else x for x in args)
    found: Tensor = _call(op, getattr(reference, op), makes, *given, **options)
    return found


def _call(
    name: str, call: Callable[..., Any], makes: Callable[[], Any] | None, *args: Any, **options: Any
) -> Any:
    """Call what is no native op, now or whenever the step that is being recorded runs."""
    tensors = (x for x in args if isinstance(x, Tensor))
    recording = next((found for x in tensors if (found := recorder.current(x))), None)
    if recording is None:
        return call(*args, **options)
    return recording.call(name, call, args, options, makes() if makes else None)
