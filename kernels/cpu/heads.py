"""A pass over a recorded step: heads that are normed, turned and stored line after line are so in
one, each while it is at hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from .recorder import Line, View
from .structures import Kind

Fields = dict[str, Any]


class _Found(NamedTuple):
    """So many lines, which do nothing but these parts of a ROPE_STORE."""

    num_lines: int
    parts: dict[str, Fields]


def fuse_heads(lines: Sequence[Line]) -> list[Line]:
    """A store of keys and values takes up the ropes just before it, and the norms before those."""
    fused: list[Line] = []
    for line in lines:
        found = _ropes(fused, line.fields) if line.kind is Kind.STORE_KV else None
        if found is not None:
            found = _with_norms(found, fused)
            del fused[len(fused) - found.num_lines :]
            fields = {**found.parts, "store": line.fields}
            line = replace(line, name="rope_store", kind=Kind.ROPE_STORE, fields=fields)
        fused.append(line)
    return fused


def _ropes(before: Sequence[Line], store: Fields) -> _Found | None:
    """The rope of queries and that of the keys that are stored, or one of both, cut in two."""
    if not before or before[-1].kind is not Kind.ROPE:
        return None
    k = before[-1].fields
    if k["x"] == store["k"] and len(before) > 1 and before[-2].kind is Kind.ROPE:
        q = before[-2].fields
        return None if q["x"].buffer is k["x"].buffer else _Found(2, {"q": q, "k": k})
    num_keys = store["k"].shape[0]
    num_queries = k["heads"] - num_keys
    if num_queries < 1 or _heads(k["x"], num_queries, num_keys) != store["k"]:
        return None
    q = {**k, "x": _heads(k["x"], 0, num_queries), "heads": num_queries}
    return _Found(1, {"q": q, "k": {**k, "x": store["k"], "heads": num_keys}})


def _heads(x: View, start: int, count: int) -> View:
    """Some heads of those of a row."""
    offset = x.offset + start * x.steps[0]
    return x._replace(offset=offset, shape=(count, *x.shape[1:]))


def _with_norms(ropes: _Found, before: Sequence[Line]) -> _Found:
    """With the norm of the queries and that of the keys, if there are both and nothing between."""
    norms = before[: len(before) - ropes.num_lines][-2:]
    if len(norms) < 2 or not all(map(_norms, norms, ropes.parts.values())):
        return ropes
    names = {"q_norm": norms[0].fields, "k_norm": norms[1].fields}
    return _Found(ropes.num_lines + 2, {**names, **ropes.parts})


def _norms(line: Line, rope: Fields) -> bool:
    """Whether a line norms, head by head and into a buffer of its own, just what is turned."""
    if line.kind is not Kind.NORM or "add" in line.fields:
        return False
    out, x = line.fields["out"], rope["x"]
    apart = line.fields["x"].buffer is not out.buffer
    whole = line.fields["groups"] == rope["heads"] and line.fields["out_step"] == rope["step"]
    return apart and whole and out.buffer is x.buffer and out.offset == x.offset
