"""The structs of native.h, field by field."""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int32, c_int64, c_void_p
from enum import IntEnum


class Dtype(IntEnum):
    F32 = 0
    BF16 = 1


class Extent(IntEnum):
    TOKENS = 0
    WANTED = 1


class Format(IntEnum):
    F32_PANELS = 0
    BF16_PANELS = 1


class Epilogue(IntEnum):
    STORE = 0
    ADD = 1
    SILU_MUL = 2
    GELU_ERF = 3
    GELU_TANH = 4
    RELU = 5
    ARGMAX_ROW = 6


class NormKind(IntEnum):
    RMS = 0
    LAYER = 1


class Kind(IntEnum):
    EMBED = 0
    LINEAR = 1
    NORM = 2
    ADD_ROWS = 3
    ANGLES = 4
    ROPE = 5
    STORE_KV = 6
    ATTEND = 7
    ACTIVATE = 8
    GATHER = 9
    ARGMAX = 10
    REDUCE = 11
    ROPE_STORE = 12
    KEYED_UNIFORM = 13
    TEMPER = 14
    DRAW = 15
    TOP_TOKENS = 16
    LOG_SOFTMAX = 17
    PENALIZE = 18
    COUNT_ABOVE = 19
    MASK = 20


class Sizes(ctypes.Structure):
    _fields_ = (("tokens", c_int64), ("wanted", c_int64), ("sequences", c_int64))


class Matrix(ctypes.Structure):
    _fields_ = (("data", c_void_p), ("stride", c_int64), ("dtype", c_int32))


class Panels(ctypes.Structure):
    _fields_ = (
        ("data", c_void_p),
        ("scales", c_void_p),
        ("inputs", c_int64),
        ("outputs", c_int64),
        ("format", c_int32),
        ("paired", c_int32),
    )


class Embed(ctypes.Structure):
    _fields_ = (
        ("out", Matrix),
        ("tokens", c_void_p),
        ("panels", Panels),
        ("table", Matrix),
        ("start", c_int64),
        ("rows", c_int64),
        ("columns", c_int64),
    )


class Linear(ctypes.Structure):
    _fields_ = (
        ("x", Matrix),
        ("out", Matrix),
        ("weight", Panels),
        ("bias", c_void_p),
        ("extent", c_int32),
        ("epilogue", c_int32),
        ("top", c_void_p),
    )


class Norm(ctypes.Structure):
    _fields_ = (
        ("x", Matrix),
        ("add", Matrix),
        ("out", Matrix),
        ("weight", c_void_p),
        ("bias", c_void_p),
        ("columns", c_int64),
        ("groups", c_int64),
        ("x_step", c_int64),
        ("out_step", c_int64),
        ("eps", c_float),
        ("kind", c_int32),
        ("extent", c_int32),
    )


class Add(ctypes.Structure):
    _fields_ = (("x", Matrix), ("into", Matrix), ("columns", c_int64), ("extent", c_int32))


class Angles(ctypes.Structure):
    _fields_ = (
        ("positions", c_void_p),
        ("inv_freq", c_void_p),
        ("cos", c_void_p),
        ("sin", c_void_p),
        ("columns", c_int64),
        ("scale", c_float),
    )


class Rope(ctypes.Structure):
    _fields_ = (
        ("x", Matrix),
        ("cos", c_void_p),
        ("sin", c_void_p),
        ("heads", c_int64),
        ("step", c_int64),
        ("angles", c_int64),
    )


class Cache(ctypes.Structure):
    _fields_ = (
        ("data", c_void_p),
        ("blocks", c_int64),
        ("block_size", c_int64),
        ("heads", c_int64),
        ("head_size", c_int64),
        ("dtype", c_int32),
    )


class StoreKv(ctypes.Structure):
    _fields_ = (
        ("k", Matrix),
        ("v", Matrix),
        ("slots", c_void_p),
        ("cache", Cache),
        ("head_size", c_int64),
    )


class RopeStore(ctypes.Structure):
    _fields_ = (
        ("q_norm", Norm),
        ("k_norm", Norm),
        ("q", Rope),
        ("k", Rope),
        ("store", StoreKv),
    )


class Attend(ctypes.Structure):
    _fields_ = (
        ("q", Matrix),
        ("out", Matrix),
        ("cache", Cache),
        ("block_table", c_void_p),
        ("table_stride", c_int64),
        ("query_start", c_void_p),
        ("kv_len", c_void_p),
        ("alibi", c_void_p),
        ("alibi_stride", c_int64),
        ("heads", c_int64),
        ("head_size", c_int64),
        ("window", c_int64),
        ("scale", c_float),
        ("softcap", c_float),
    )


class Activate(ctypes.Structure):
    _fields_ = (
        ("x", Matrix),
        ("out", Matrix),
        ("columns", c_int64),
        ("kind", c_int32),
        ("extent", c_int32),
    )


class Gather(ctypes.Structure):
    _fields_ = (("x", Matrix), ("out", Matrix), ("rows", c_void_p), ("columns", c_int64))


class Argmax(ctypes.Structure):
    _fields_ = (("logits", Matrix), ("tokens", c_void_p), ("columns", c_int64))


class Reduce(ctypes.Structure):
    _fields_ = (
        ("x", Matrix),
        ("slab", c_void_p),
        ("pipes", c_void_p),
        ("slab_bytes", c_int64),
        ("columns", c_int64),
        ("rank", c_int32),
        ("ranks", c_int32),
        ("extent", c_int32),
    )


class KeyedUniform(ctypes.Structure):
    _fields_ = (
        ("keys", c_void_p),
        ("positions", c_void_p),
        ("siblings", c_void_p),
        ("out", c_void_p),
        ("draw", c_int64),
    )


class Temper(ctypes.Structure):
    _fields_ = (
        ("logits", Matrix),
        ("out", Matrix),
        ("rows", c_void_p),
        ("top", c_void_p),
        ("temperature", c_void_p),
        ("columns", c_int64),
    )


class Draw(ctypes.Structure):
    _fields_ = (
        ("x", Matrix),
        ("u", c_void_p),
        ("tokens", c_void_p),
        ("top_k", c_void_p),
        ("min_p", c_void_p),
        ("top_p", c_void_p),
        ("columns", c_int64),
    )


class TopTokens(ctypes.Structure):
    _fields_ = (
        ("values", Matrix),
        ("ids", c_void_p),
        ("kept", c_void_p),
        ("columns", c_int64),
        ("most", c_int64),
    )


class CountAbove(ctypes.Structure):
    _fields_ = (
        ("values", Matrix),
        ("bounds", c_void_p),
        ("counts", c_void_p),
        ("columns", c_int64),
        ("num", c_int64),
    )


class LogSoftmax(ctypes.Structure):
    _fields_ = (("x", Matrix), ("out", Matrix), ("columns", c_int64))


class Penalize(ctypes.Structure):
    _fields_ = (
        ("logits", Matrix),
        ("rows", c_void_p),
        ("ids", c_void_p),
        ("num_prompt", c_void_p),
        ("num_tokens", c_void_p),
        ("repetition", c_void_p),
        ("frequency", c_void_p),
        ("presence", c_void_p),
        ("ids_stride", c_int64),
        ("columns", c_int64),
    )


class Masking(ctypes.Structure):
    _fields_ = (
        ("logits", Matrix),
        ("rows", c_void_p),
        ("allowed", c_void_p),
        ("which", c_void_p),
        ("starts", c_void_p),
        ("ids", c_void_p),
        ("amounts", c_void_p),
        ("broken", c_void_p),
        ("words", c_int64),
        ("columns", c_int64),
    )


class Part(ctypes.Structure):
    _fields_ = (("data", c_void_p), ("bytes", c_int64))


class Step(ctypes.Structure):
    _fields_ = (("args", c_void_p), ("kind", c_int32), ("mark", c_int32))


ARGS: dict[Kind, type[ctypes.Structure]] = {
    Kind.EMBED: Embed,
    Kind.LINEAR: Linear,
    Kind.NORM: Norm,
    Kind.ADD_ROWS: Add,
    Kind.ANGLES: Angles,
    Kind.ROPE: Rope,
    Kind.STORE_KV: StoreKv,
    Kind.ATTEND: Attend,
    Kind.ACTIVATE: Activate,
    Kind.GATHER: Gather,
    Kind.ARGMAX: Argmax,
    Kind.REDUCE: Reduce,
    Kind.ROPE_STORE: RopeStore,
    Kind.KEYED_UNIFORM: KeyedUniform,
    Kind.TEMPER: Temper,
    Kind.DRAW: Draw,
    Kind.TOP_TOKENS: TopTokens,
    Kind.LOG_SOFTMAX: LogSoftmax,
    Kind.PENALIZE: Penalize,
    Kind.COUNT_ABOVE: CountAbove,
    Kind.MASK: Masking,
}


def step(kind: Kind, args: ctypes.Structure, mark: int = 0) -> Step:
    """A step whose `args` somebody keeps alive."""
    return Step(ctypes.addressof(args), kind, mark)
