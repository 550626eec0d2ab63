"""Paged attention against the reference, and the same bits in every company."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from shoal.kernels import ops, reference
from shoal.kernels.gpu.family import Family
from torch import Tensor

from .scene import Shape, make

BOUNDS = {torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}

GRID = {
    "one key": (Shape(queries=(1, 1), keys=(1, 2)), torch.float32),
    "several splits": (Shape(queries=(1,), keys=(700,), heads=2, kv_heads=1), torch.float32),
    "more splits than are read at once": (
        Shape(queries=(1, 1), keys=(2400, 300), heads=1, kv_heads=1, size=16),
        torch.bfloat16,
    ),
    "a window of many splits": (
        Shape(queries=(1,), keys=(2900,), heads=1, kv_heads=1, size=16, window=2500),
        torch.bfloat16,
    ),
    "both kinds, one empty, rows of nobody": (
        Shape(queries=(1, 5, 0, 1), keys=(5, 40, 17, 33), tail=3),
        torch.float32,
    ),
    "bfloat16": (Shape(queries=(7, 1), keys=(20, 300)), torch.bfloat16),
    "float16": (Shape(queries=(7, 1), keys=(20, 30)), torch.float16),
    "seven heads a group, of 80": (
        Shape(heads=7, kv_heads=1, size=80, queries=(1, 9), keys=(40, 30)),
        torch.bfloat16,
    ),
    "a window within a page, heads of 96": (
        Shape(heads=3, kv_heads=3, size=96, page=8, queries=(1, 9), keys=(40, 30), window=5),
        torch.float32,
    ),
    "a window over splits, alibi, heads of 112": (
        Shape(
            heads=2,
            kv_heads=1,
            size=112,
            page=32,
            queries=(1, 9),
            keys=(600, 300),
            window=270,
            alibi=True,
        ),
        torch.bfloat16,
    ),
    "a soft cap, heads of 256": (
        Shape(heads=2, size=256, page=4, queries=(3, 1), keys=(40, 30), softcap=5.0),
        torch.float32,
    ),
    "four heads a group, of 128": (
        Shape(heads=8, size=128, queries=(1, 5, 1, 9), keys=(300, 40, 17, 30)),
        torch.bfloat16,
    ),
    "heads of 128, one a group": (
        Shape(heads=2, size=128, queries=(3, 1), keys=(20, 270)),
        torch.float32,
    ),
    "three heads a group, of 192": (
        Shape(heads=6, size=192, queries=(1, 9), keys=(300, 30)),
        torch.float16,
    ),
    "many heads on one": (
        Shape(heads=71, kv_heads=1, queries=(2, 1), keys=(9, 30)),
        torch.float16,
    ),
}


def attend(shape: Shape, dtype: torch.dtype, device: torch.device, exact: bool) -> Tensor:
    from shoal.kernels.gpu import attention

    tensors, named = make(shape, dtype, device)
    _, kv, table, starts, lengths = tensors
    plan = attention.plan_attention(
        kv,
        table,
        starts,
        lengths,
        window=shape.window,
        max_query=max(shape.queries),
        max_kv=max(shape.keys),
    )
    found = attention.paged_attention(*tensors, **named, plan=plan, exact=exact)
    again = attention.paged_attention(*tensors, **named, exact=exact)
    assert torch.equal(found, again), "a plan changes nothing"
    return found


def check(found: Tensor, shape: Shape, dtype: torch.dtype, device: torch.device) -> None:
    tensors, named = make(shape, dtype, device)
    right = reference.paged_attention(*tensors, **named)
    assert found.dtype == dtype and found.shape == right.shape
    assert torch.isfinite(found).all()
    assert float((found.float() - right.float()).abs().max()) < BOUNDS[dtype] * 4


@pytest.mark.parametrize("exact", [False, True], ids=["fast", "exact"])
@pytest.mark.parametrize("name", GRID)
def test_as_the_reference(name: str, exact: bool, device: torch.device) -> None:
    shape, dtype = GRID[name]
    found = attend(shape, dtype, device, exact)
    check(found, shape, dtype, device)
    if shape.tail:
        assert not found[-shape.tail :].any()


@pytest.mark.parametrize("exact", [False, True], ids=["fast", "exact"])
@pytest.mark.parametrize("size", [64, 128, 256])
def test_every_tile_of_a_family(size: int, exact: bool, kind: Family, device: torch.device) -> None:
    """Of decode over two splits, and of prefill, more than one by queries and by keys."""
    from shoal.kernels.gpu import attention

    dtype = torch.float16 if kind is Family.OLD else torch.bfloat16
    shape = Shape(heads=8, kv_heads=1, size=size, queries=(1, 18), keys=(270, 140))
    tensors, named = make(shape, dtype, device)
    found = attention.paged_attention(*tensors, **named, exact=exact)
    check(found, shape, dtype, device)


def test_no_sequence_and_no_row(device: torch.device) -> None:
    from shoal.kernels.gpu import attention

    empty = Shape(queries=(), keys=(), tail=2)
    tensors, named = make(empty, torch.float32, device)
    assert not attention.paged_attention(*tensors, **named).any()
    tensors, named = make(replace(empty, tail=0), torch.float32, device)
    assert attention.paged_attention(*tensors, **named).shape == (0, 4, 64)


@pytest.mark.parametrize("window", [None, 100])
def test_a_row_has_the_same_bits_in_every_company(window: int | None, device: torch.device) -> None:
    """Decoded alone, among others, and as the end of chunks of several lengths."""
    from shoal.kernels.gpu import attention

    whole = Shape(queries=(40,), keys=(300,), window=window, heads=2, kv_heads=1)
    (q, kv, table, _, _), named = make(whole, torch.bfloat16, device)

    def rows(*spans: tuple[int, int]) -> Tensor:
        """Attend for query rows first:last of the text, one sequence a span."""
        parts = torch.cat([q[first:last] for first, last in spans])
        counts = [last - first for first, last in spans]
        starts = torch.tensor([0, *counts]).cumsum(0).int().to(device)
        lengths = torch.tensor([260 + last for _, last in spans]).int().to(device)
        tables = table.expand(len(spans), -1).contiguous()
        return attention.paged_attention(parts, kv, tables, starts, lengths, **named, exact=True)

    at_once = rows((0, 40))
    chunked = torch.cat([rows((0, 7)), rows((7, 8)), rows((8, 40))])
    assert torch.equal(at_once, chunked)
    company = rows((39, 40), (3, 4), (0, 20), (20, 21))
    assert torch.equal(company[:2], at_once[[39, 3]])
    assert torch.equal(company[2:], at_once[:21])
    assert torch.equal(rows((39, 40)), at_once[39:])


def test_decode_has_the_same_bits_in_company_without_being_asked(device: torch.device) -> None:
    from shoal.kernels.gpu import attention

    shape = Shape(queries=(1, 1, 1), keys=(300, 700, 20), heads=2, kv_heads=1)
    (q, kv, table, starts, lengths), named = make(shape, torch.bfloat16, device)
    together = attention.paged_attention(q, kv, table, starts, lengths, **named)
    for row in range(3):
        one = slice(row, row + 1)
        alone = attention.paged_attention(q[one], kv, table[one], starts[:2], lengths[one], **named)
        assert torch.equal(alone, together[one])


def test_splits_are_counted_as_the_kernels_cut_them() -> None:
    from shoal.kernels.gpu.room import num_splits

    bounds = [*range(0, 4096, 256), *range(4096, 32768, 1024), *range(32768, 200_000, 4096)]
    for keys in (0, 1, 256, 257, 4096, 4097, 5120, 5121, 32768, 32769, 36865, 131072):
        assert num_splits(keys) == max(1, sum(bound < keys for bound in bounds))


def test_every_tile_has_an_entry() -> None:
    from shoal.kernels.gpu.attention import choose

    for kind in Family:
        for size in (64, 80, 96, 112, 128, 192, 256):
            for group in (1, 4, 7, 8, 71):
                for exact in (False, True):
                    launch = choose(size, group, torch.bfloat16, kind, exact)
                    assert min(launch.decode.rows, launch.prefill.rows) >= group
                    assert not exact or launch.decode == launch.prefill


def test_the_face_checks_before_a_kernel_runs(device: torch.device) -> None:
    tensors, named = make(Shape(), torch.float32, device)
    tensors[0] = tensors[0][..., :-17]
    with pytest.raises(ValueError, match="do not fit a cache"):
        ops.paged_attention(*tensors, **named)
