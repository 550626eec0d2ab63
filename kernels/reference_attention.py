"""Paged attention in torch: gather the keys a few sequences need, one fused call for them.

Sequences with one query (decode) are sorted by length and go several to a call; longer queries
(prefill) go in tiles of rows, each over the keys that it can see:

    keys      past        | the chunk
    tile 0    ############|##.              # read in full
    tile 1    ############|####.            . masked by the diagonal
    tile 2    ############|######.          (a window cuts the left in the same way)

Only slots that hold a key of the sequence are gathered: padding repeats the sequence's own last
key, so that neither stale content nor a neighbour's NaN can come in.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

GATHER_BYTES = 1 << 20
"""Keys gathered a call: about what a core's own cache holds together with as many values."""

TILE = 128
"""Query rows a prefill call takes: small enough to skip most keys that causality hides."""


class Decode(NamedTuple):
    """Sequences of one query each: rows [C] of q; slots and positions [C, L] of their keys, the
    last one repeated where a sequence has fewer; bias [C, 1, 1, L] or None.
    """

    rows: Tensor
    slots: Tensor
    positions: Tensor
    bias: Tensor | None


class Tile(NamedTuple):
    """Rows `start` to `stop` of q, over gathered keys `left` to `right`; bias [rows, keys]."""

    start: int
    stop: int
    left: int
    right: int
    bias: Tensor


class Prefill(NamedTuple):
    """One sequence of several queries: slots [L] of its keys, from position `first` on, and its
    tiles."""

    slots: Tensor
    first: int
    tiles: list[Tile]


class Plan(NamedTuple):
    """A step's attention; rows of q from `num_rows` on belong to no sequence.

    `scratch` [2, slots, G, D] takes the gathered keys and values of every call and every layer:
    memory that is asked for anew each time costs more than the product.
    """

    decodes: list[Decode]
    prefills: list[Prefill]
    num_rows: int
    scratch: Tensor


class Span(NamedTuple):
    """Rows `start` to `stop` of q: a sequence's queries, which see its keys `first` to `length`."""

    sequence: int
    start: int
    stop: int
    first: int
    length: int

    @property
    def num_keys(self) -> int:
        return self.length - self.first


def plan_attention(
    kv: Tensor,
    block_table: Tensor,
    query_start: Tensor,
    kv_len: Tensor,
    *,
    window: int | None = None,
    max_query: int = 0,
    max_kv: int = 0,
) -> Plan:
    spans = _spans(query_start.tolist(), kv_len.tolist(), window)
    most_keys = max(1, GATHER_BYTES // (kv[0, 0, 0].numel() * kv.element_size()))
    decodes = [
        _decode(group, block_table, kv)
        for group in _groups([s for s in spans if s.stop - s.start == 1], most_keys)
    ]
    long = [s for s in spans if s.stop - s.start > 1]
    prefills = []
    if long:
        strip = _strip(max(s.num_keys for s in long), window, kv)
        prefills = [_prefill(span, block_table, strip, window, kv) for span in long]
    gathered = [part.slots for part in decodes] + [part.slots for part in prefills]
    most = max((slots.numel() for slots in gathered), default=0)
    scratch = torch.empty((2, most, *kv.shape[3:]), dtype=kv.dtype, device=kv.device)
    return Plan(decodes, prefills, int(query_start[-1]), scratch)


def _spans(starts: list[int], lengths: list[int], window: int | None) -> list[Span]:
    spans = []
    for index, length in enumerate(lengths):
        start, stop = starts[index], starts[index + 1]
        first = 0 if window is None else max(0, length - (stop - start) + 1 - window)
        if stop > start:
            spans.append(Span(index, start, stop, first, length))
    return spans


def _groups(spans: list[Span], most_keys: int) -> Iterator[list[Span]]:
    """Spans of like length together, at most `most_keys` padded keys a group."""
    group: list[Span] = []
    for span in sorted(spans, key=lambda s: -s.num_keys):
        if group and (len(group) + 1) * group[0].num_keys > most_keys:
            yield group
            group = []
        group.append(span)
    if group:
        yield group


def _decode(group: list[Span], block_table: Tensor, kv: Tensor) -> Decode:
    device = kv.device
    rows, index, first, length = torch.tensor(
        [(s.start, s.sequence, s.first, s.length) for s in group], device=device
    ).unbind(1)
    wanted = first[:, None] + torch.arange(group[0].num_keys, device=device)
    positions = torch.minimum(wanted, length[:, None] - 1)
    bias = None
    if group[-1].num_keys < group[0].num_keys:
        bias = torch.zeros(positions.shape, dtype=kv.dtype, device=device)
        bias = bias.masked_fill_(wanted > positions, float("-inf"))[:, None, None]
    return Decode(rows, _slots(block_table[index], positions, kv), positions, bias)


def _prefill(
    span: Span, block_table: Tensor, strip: Tensor, window: int | None, kv: Tensor
) -> Prefill:
    positions = torch.arange(span.first, span.length, device=kv.device)
    slots = _slots(block_table[span.sequence : span.sequence + 1], positions[None], kv)[0]
    tiles = []
    diagonal = strip.shape[1] - TILE
    past = span.length - (span.stop - span.start) - span.first
    for start in range(span.start, span.stop, TILE):
        stop = min(start + TILE, span.stop)
        right = past + stop - span.start
        before = past + start - span.start
        left = 0 if window is None else max(0, before + 1 - window)
        seen = before - left
        bias = strip[: stop - start, diagonal - seen : diagonal + stop - start]
        tiles.append(Tile(start, stop, left, right, bias))
    return Prefill(slots, span.first, tiles)


def _strip(most_keys: int, window: int | None, kv: Tensor) -> Tensor:
    """The band of which every tile's bias is a piece.

    Row i allows columns up to i past the diagonal, and of those the last `window`.
    """
    before = most_keys if window is None else min(most_keys, window)
    columns = torch.arange(-before, TILE, device=kv.device)
    offset = columns - torch.arange(TILE, device=kv.device)[:, None]
    hidden = offset > 0 if window is None else (offset > 0) | (offset <= -window)
    strip = torch.zeros(hidden.shape, dtype=kv.dtype, device=kv.device)
    return strip.masked_fill_(hidden, float("-inf"))


def _slots(tables: Tensor, positions: Tensor, kv: Tensor) -> Tensor:
    block_size = kv.shape[2]
    blocks = tables.gather(1, positions // block_size).long()
    return blocks * block_size + positions % block_size


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
    plan: Plan | None = None,
) -> Tensor:
    if plan is None:
        plan = plan_attention(kv, block_table, query_start, kv_len, window=window)
    num_heads, head_size = q.shape[1:]
    num_kv_heads = kv.shape[3]
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    out[plan.num_rows :].zero_()
    for rows, slots, positions, bias in plan.decodes:
        shape = (len(rows), -1, num_kv_heads, head_size)
        k, v = (x.view(shape).transpose(1, 2) for x in _gather(kv, slots.flatten(), plan.scratch))
        # All heads of a group see the same keys, so they can stand as rows of one query.
        grouped = q.index_select(0, rows).view(len(rows), num_kv_heads, -1, head_size)
        if alibi is not None:
            lifted = _lifted(alibi[:, positions], q.dtype).transpose(0, 1)
            lifted = lifted.unflatten(1, (num_kv_heads, -1))
            bias = lifted if bias is None else lifted + bias
        found = _attend(grouped, k, v, bias, scale, softcap)
        out.index_copy_(0, rows, found.reshape(len(rows), num_heads, head_size))
    for slots, first, tiles in plan.prefills:
        k, v = (x.transpose(0, 1)[None] for x in _gather(kv, slots, plan.scratch))
        for start, stop, left, right, bias in tiles:
            query = q[start:stop].transpose(0, 1)[None]
            if alibi is not None:
                seen = alibi[:, first + left : first + right]
                bias = _lifted(seen, q.dtype)[:, None] + bias
            found = _attend(query, k[:, :, left:right], v[:, :, left:right], bias, scale, softcap)
            out[start:stop] = found[0].transpose(0, 1)
    return out


def _lifted(alibi: Tensor, dtype: torch.dtype) -> Tensor:
    """Alibi over some keys, counted from the last one: softmax sees differences alone, and those of
    the nearest keys, which matter most, then keep their bits in a narrow dtype.
    """
    return (alibi - alibi[..., -1:]).to(dtype)


def _gather(kv: Tensor, slots: Tensor, scratch: Tensor) -> Iterator[Tensor]:
    """Keys, then values of the slots: [len(slots), G, D] each, in scratch."""
    for whole, part in zip(kv.flatten(1, 2), scratch[:, : len(slots)], strict=True):
        yield torch.index_select(whole, 0, slots, out=part)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, softcap: float | None
) -> Tensor:
    """softmax(scores + bias) v, for q [C, H, n, D] and k, v [C, G, L, D]."""
    if softcap is None:
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=bias, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
        )
    repeat = q.shape[1] // k.shape[1]
    wide_k, wide_v = (x.float().repeat_interleave(repeat, 1) for x in (k, v))
    scores = torch.tanh(q.float() @ wide_k.mT * (scale / softcap)) * softcap
    if bias is not None:
        scores = scores + bias
    return (torch.softmax(scores, -1) @ wide_v).to(q.dtype)
