"""The Triton kernels of paged attention; `attention` launches them.

Keys are cut into splits whose bounds are fixed by position, whatever the batch:

    keys      0 .. 4096      in splits of 256     splits  0 .. 16
              4096 .. 32768  in splits of 1024    splits 16 .. 44
              32768 ..       in splits of 4096    splits 44 ..

so that a short text has enough of them to fill a GPU and a long one few enough to add up. Within a
split tiles of keys go from left to right; splits are then merged from left to right. What a row
gets is therefore a function of that row and the keys that it sees.

A tile of queries holds, for one key-value head, some consecutive queries of one sequence with all
the heads that share it: row r is query r // GROUP, head r % GROUP. Scores are kept in units of
log 2.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .tile import product

LOG2E = tl.constexpr(1.4426950408889634)
AHEAD = tl.constexpr(8)
"""Splits that `combine_kernel` has on their way to it."""


@triton.jit
def split_start(split):
    """The first key of a split."""
    far = tl.where(split < 44, 4096 + (split - 16) * 1024, 32768 + (split - 44) * 4096)
    return tl.where(split < 16, split * 256, far)


@triton.jit
def split_of(key):
    """The split that a key lies in."""
    far = tl.where(key < 32768, 16 + (key - 4096) // 1024, 44 + (key - 32768) // 4096)
    return tl.where(key < 4096, key // 256, far)


@triton.jit
def lowest_seen(position, window, WINDOW: tl.constexpr):
    """The first key that a query at `position` sees."""
    lowest = 0
    if WINDOW:
        lowest = tl.maximum(position + 1 - window, 0)
    return lowest


@triton.jit
def nothing(M: tl.constexpr, BLOCK_D: tl.constexpr):
    """The softmax sum of what has seen no key: its top, weight and total."""
    top = tl.full([M], float("-inf"), tl.float32)
    return top, tl.zeros([M], tl.float32), tl.zeros([M, BLOCK_D], tl.float32)


@triton.jit
def merge(top, weight, total, other_top, other_weight, other_total):
    """Two partial softmax sums as one; what has seen no key (top of -inf) changes nothing."""
    new_top = tl.maximum(top, other_top)
    base = tl.where(new_top == float("-inf"), 0.0, new_top)
    own = tl.math.exp2(top - base)
    other = tl.math.exp2(other_top - base)
    weight = weight * own + other_weight * other
    total = total * own[:, None] + other_total * other[:, None]
    return new_top, weight, total


@triton.jit
def blocks_of(table, start, last, lowest, P: tl.constexpr, N: tl.constexpr):
    """The blocks of a tile's keys, 0 where none is read."""
    key = start + tl.arange(0, N)
    return tl.load(table + key // P, mask=(key < last) & (key >= lowest), other=0)


@triton.jit
def scan(
    q,
    position,
    head,
    kv,
    table,
    alibi,
    first,
    last,
    lowest,
    top,
    weight,
    total,
    scale,
    softcap,
    window,
    kv_half,
    kv_block,
    kv_token,
    alibi_head,
    P: tl.constexpr,
    D: tl.constexpr,
    N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    ALIBI: tl.constexpr,
):
    """Take the keys `first` to `last`, tile by tile, into a softmax sum.

    q [M, BLOCK_D]; position [M], -1 in idle rows; head [M]. `first` is a multiple of N; keys below
    `lowest` are seen by no row and not read. A tile's blocks are looked up in the turn before: keys
    whose place depended on a load of their own turn could not be on their way before it. Alibi
    counts from a row's own key: softmax sees differences alone, and far from zero a sum with the
    whole would leave the scores few bits.
    """
    d = tl.arange(0, BLOCK_D)
    if ALIBI:
        own = tl.load(alibi + head * alibi_head + position, mask=position >= 0, other=0.0)
    block = blocks_of(table, first, last, lowest, P, N)
    for start in range(first, last, N):
        key = start + tl.arange(0, N)
        known = (key < last) & (key >= lowest)
        place = block.to(tl.int64) * kv_block + (key % P) * kv_token
        block = blocks_of(table, start + N, last, lowest, P, N)
        inside = known[:, None] & (d < D)[None, :]
        k = tl.load(kv + place[:, None] + d[None, :], mask=inside, other=0.0)
        scores = product(q, tl.trans(k), tl.zeros([q.shape[0], N], tl.float32))
        if SOFTCAP:
            wide = tl.math.exp2(scores * (scale / softcap * 2 * LOG2E))
            scores = softcap * LOG2E * (1 - 2 / (wide + 1))
        else:
            scores = scores * (scale * LOG2E)
        seen = known[None, :] & (key[None, :] <= position[:, None])
        if ALIBI:
            lifted = alibi + head[:, None] * alibi_head + key[None, :]
            scores += LOG2E * (tl.load(lifted, mask=seen, other=0.0) - own[:, None])
        if WINDOW:
            seen = seen & (key[None, :] > position[:, None] - window)
        scores = tl.where(seen, scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        base = tl.where(new_top == float("-inf"), 0.0, new_top)
        share = tl.math.exp2(scores - base[:, None])
        fade = tl.math.exp2(top - base)
        weight = weight * fade + tl.sum(share, 1)
        v = tl.load(kv + kv_half + place[:, None] + d[None, :], mask=inside, other=0.0)
        total = product(share.to(v.dtype), v, total * fade[:, None])
        top = new_top
    return top, weight, total


@triton.jit
def sequence_of(query_start, num_sequences, at, BLOCK_Q: tl.constexpr, GAP: tl.constexpr):
    """The last sequence b that has its tiles from `at` or before on, which are counted from
    query_start[b] // BLOCK_Q + b * GAP: with a GAP of 1 room enough for each, known without
    counting.
    """
    low = 0
    high = num_sequences
    while low < high:
        middle = (low + high) // 2
        if tl.load(query_start + middle) // BLOCK_Q + middle * GAP <= at:
            low = middle + 1
        else:
            high = middle
    return low - 1


@triton.jit(do_not_specialize=["num_sequences", "table_row"])
def prefill_kernel(
    out,
    q,
    kv,
    block_table,
    query_start,
    kv_len,
    alibi,
    num_sequences,
    scale,
    softcap,
    window,
    q_token,
    q_head,
    kv_half,
    kv_block,
    kv_token,
    table_row,
    alibi_head,
    H: tl.constexpr,
    GROUP: tl.constexpr,
    P: tl.constexpr,
    D: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    ALIBI: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """Tiles of the sequences that have several queries; grid (tiles, G).

    SPLIT: by splits, merged as `combine_kernel` merges them; otherwise in one go.
    """
    BLOCK_Q: tl.constexpr = M // GROUP
    tile = tl.program_id(0)
    kv_head = tl.program_id(1)
    sequence = sequence_of(query_start, num_sequences, tile, BLOCK_Q, 1)
    begin = tl.load(query_start + sequence)
    count = tl.load(query_start + sequence + 1) - begin
    index = (tile - begin // BLOCK_Q - sequence) * BLOCK_Q
    if (count == 1) | (index >= count):
        return
    row = tl.arange(0, M)
    query = index + row // GROUP
    head = kv_head * GROUP + row % GROUP
    active = (row < BLOCK_Q * GROUP) & (query < count)
    d = tl.arange(0, BLOCK_D)
    place = (begin + query).to(tl.int64)
    inside = active[:, None] & (d < D)[None, :]
    own = q + place[:, None] * q_token + head[:, None] * q_head + d[None, :]
    queries = tl.load(own, mask=inside, other=0.0)
    past = tl.load(kv_len + sequence) - count
    position = tl.where(active, past + query, -1)
    last = past + tl.minimum(index + BLOCK_Q, count)
    lowest = lowest_seen(past + index, window, WINDOW)
    table = block_table + sequence.to(tl.int64) * table_row
    kv += kv_head * D
    top, weight, total = nothing(M, BLOCK_D)
    if SPLIT:
        for split in range(split_of(lowest), split_of(last - 1) + 1):
            part_first = tl.maximum(split_start(split), lowest // N * N)
            part_last = tl.minimum(split_start(split + 1), last)
            part_top, part_weight, part_total = nothing(M, BLOCK_D)
            part_top, part_weight, part_total = scan(
                queries, position, head, kv, table, alibi, part_first, part_last, lowest,
                part_top, part_weight, part_total,
                scale, softcap, window, kv_half, kv_block, kv_token, alibi_head,
                P, D, N, BLOCK_D, WINDOW, SOFTCAP, ALIBI,
            )  # fmt: skip
            top, weight, total = merge(top, weight, total, part_top, part_weight, part_total)
    else:
        top, weight, total = scan(
            queries, position, head, kv, table, alibi, lowest // N * N, last, lowest,
            top, weight, total,
            scale, softcap, window, kv_half, kv_block, kv_token, alibi_head,
            P, D, N, BLOCK_D, WINDOW, SOFTCAP, ALIBI,
        )  # fmt: skip
    found = total / tl.where(weight == 0.0, 1.0, weight)[:, None]
    goal = out + (place[:, None] * H + head[:, None]) * D + d[None, :]
    tl.store(goal, found.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["num_splits", "table_row"])
def decode_kernel(
    parts,
    marks,
    q,
    kv,
    block_table,
    query_start,
    kv_len,
    alibi,
    num_splits,
    scale,
    softcap,
    window,
    q_token,
    q_head,
    kv_half,
    kv_block,
    kv_token,
    table_row,
    alibi_head,
    H: tl.constexpr,
    GROUP: tl.constexpr,
    P: tl.constexpr,
    D: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    ALIBI: tl.constexpr,
):
    """One split of a sequence that has one query; grid (splits, G, B).

    parts [B, H, splits, D] float32, sums that are not divided by their weight yet; marks [B, H,
    splits, 2] float32, the top and the weight. Splits past the text are left as they are.
    """
    split = tl.program_id(0)
    kv_head = tl.program_id(1)
    sequence = tl.program_id(2)
    begin = tl.load(query_start + sequence)
    last = tl.load(kv_len + sequence)
    lowest = lowest_seen(last - 1, window, WINDOW)
    first = tl.maximum(split_start(split), lowest // N * N)
    end = tl.minimum(split_start(split + 1), last)
    if (tl.load(query_start + sequence + 1) - begin != 1) | (first >= end):
        return
    row = tl.arange(0, M)
    head = kv_head * GROUP + row
    active = row < GROUP
    d = tl.arange(0, BLOCK_D)
    inside = active[:, None] & (d < D)[None, :]
    own = q + begin.to(tl.int64) * q_token + head[:, None] * q_head + d[None, :]
    queries = tl.load(own, mask=inside, other=0.0)
    position = tl.where(active, last - 1, -1)
    top, weight, total = nothing(M, BLOCK_D)
    top, weight, total = scan(
        queries, position, head, kv + kv_head * D,
        block_table + sequence.to(tl.int64) * table_row, alibi, first, end, lowest,
        top, weight, total,
        scale, softcap, window, kv_half, kv_block, kv_token, alibi_head,
        P, D, N, BLOCK_D, WINDOW, SOFTCAP, ALIBI,
    )  # fmt: skip
    place = (sequence.to(tl.int64) * H + head) * num_splits + split
    tl.store(parts + place[:, None] * D + d[None, :], total, mask=inside)
    tl.store(marks + place * 2, top, mask=active)
    tl.store(marks + place * 2 + 1, weight, mask=active)


@triton.jit(do_not_specialize=["num_sequences", "num_splits"])
def combine_kernel(
    out,
    parts,
    marks,
    query_start,
    kv_len,
    num_sequences,
    num_splits,
    window,
    H: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WINDOW: tl.constexpr,
):
    """Merge the splits of each row whose sequence has one query; grid (T, H).

    Rows of no sequence become zeros.
    """
    row = tl.program_id(0)
    head = tl.program_id(1)
    d = tl.arange(0, BLOCK_D)
    goal = out + (row.to(tl.int64) * H + head) * D + d
    inside = d < D
    sequence = tl.minimum(row, num_sequences - 1)  # right where every sequence has one query
    begin = tl.load(query_start + sequence)
    if (begin != row) | (tl.load(query_start + sequence + 1) != row + 1):
        sequence = sequence_of(query_start, num_sequences, row, 1, 0)
    last = tl.load(kv_len + sequence)
    count = tl.load(query_start + sequence + 1) - tl.load(query_start + sequence)
    if row >= tl.load(query_start + num_sequences):
        tl.store(goal, tl.zeros([BLOCK_D], out.dtype.element_ty), mask=inside)
        return
    if count != 1:
        return
    lowest = lowest_seen(last - 1, window, WINDOW)
    top, weight, total = nothing(1, BLOCK_D)
    base = (sequence.to(tl.int64) * H + head) * num_splits
    stop = tl.where(last > 0, split_of(tl.maximum(last - 1, 0)) + 1, 0)
    one = tl.zeros([1], tl.int32)
    for start in range(split_of(lowest), stop, AHEAD):
        for ahead in tl.static_range(AHEAD):  # their loads are under way together
            split = start + ahead
            place = base + split
            given = parts + place * D + d[None, :]
            part = tl.load(given, mask=inside[None, :] & (split < stop), other=0.0)
            known = split + one < stop
            part_top = tl.load(marks + place * 2 + one, mask=known, other=float("-inf"))
            part_weight = tl.load(marks + place * 2 + 1 + one, mask=known, other=0.0)
            top, weight, total = merge(top, weight, total, part_top, part_weight, part)
    found = total / tl.where(weight == 0.0, 1.0, weight)[:, None]
    tl.store(goal[None, :], found.to(out.dtype.element_ty), mask=inside[None, :])
