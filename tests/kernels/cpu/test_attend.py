"""Paged attention: against the reference, and to the bit whatever the company."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from shoal.kernels import reference
from shoal.kernels.cpu.backend import page_columns
from shoal.kernels.cpu.structures import Attend, Cache, Kind, StoreKv
from torch import Tensor

from .steps import draw, dtype_of, matrix, run

torch.set_num_threads(1)
pytestmark = pytest.mark.usefixtures("instructions")

SLOPES = torch.tensor([0.5, 0.25, 0.1, 0.05, 0.03, 0.01])
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


@dataclass(slots=True, kw_only=True)
class Pages:
    """A cache of the native layout and the same in the reference's."""

    native: Tensor
    plain: Tensor

    def cache(self) -> Cache:
        _, blocks, block_size, heads, size = self.native.shape
        return Cache(self.native.data_ptr(), blocks, block_size, heads, size, dtype_of(self.native))

    def store(self, k: Tensor, v: Tensor, slots: Tensor) -> None:
        args = StoreKv(matrix(k), matrix(v), slots.data_ptr(), self.cache(), self.plain.shape[4])
        run(Kind.STORE_KV, args, tokens=len(k))
        shape = (len(k), *self.plain.shape[3:])
        dtype = self.plain.dtype
        reference.store_kv(k.view(shape).to(dtype), v.view(shape).to(dtype), self.plain, slots)


def pages(
    blocks: int, block_size: int, heads: int, size: int, dtype: torch.dtype = torch.float32
) -> Pages:
    """Caches in which nothing may be read that nobody stored."""
    shape = (2, blocks, block_size, heads)
    return Pages(
        native=torch.full((*shape, page_columns(dtype, size, block_size)), torch.nan, dtype=dtype),
        plain=torch.full((*shape, size), torch.nan, dtype=dtype),
    )


@dataclass(slots=True, kw_only=True)
class Batch:
    """Sequences of some lengths in scattered pages, every key stored."""

    pages: Pages
    table: Tensor
    lengths: list[int]

    def attend(
        self,
        q: Tensor,
        counts: list[int],
        rows: list[int] | None = None,
        lengths: list[int] | None = None,
        *,
        scale: float = 0.125,
        window: int | None = None,
        softcap: float | None = None,
        alibi: Tensor | None = None,
        threads: int = 2,
        padding: int = 0,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """The last `counts` queries of sequences `rows`, q [T, H, D]; padding rows behind them."""
        table = self.table if rows is None else self.table[rows].contiguous()
        kv_len = torch.tensor(lengths or self.lengths, dtype=torch.int32)
        starts = torch.tensor([0, *counts]).cumsum(0).to(torch.int32)
        out = torch.full((len(q) + padding, *q.shape[1:]), 7.0, dtype=dtype or q.dtype)
        padded = torch.cat((q, q[:padding]))
        args = Attend(
            matrix(padded),
            matrix(out),
            self.pages.cache(),
            table.data_ptr(),
            table.stride(0),
            starts.data_ptr(),
            kv_len.data_ptr(),
            None if alibi is None else alibi.data_ptr(),
            0 if alibi is None else alibi.stride(0),
            q.shape[1],
            q.shape[2],
            window or 0,
            scale,
            softcap or 0.0,
        )
        run(Kind.ATTEND, args, tokens=len(out), sequences=len(counts), threads=threads)
        assert bool((out[len(q) :] == 0).all())
        return out[: len(q)]

    def right(self, q: Tensor, counts: list[int], **options: object) -> Tensor:
        starts = torch.tensor([0, *counts]).cumsum(0).to(torch.int32)
        found: Tensor = reference.paged_attention(
            q.float(),
            self.pages.plain.float(),
            self.table,
            starts,
            torch.tensor(self.lengths, dtype=torch.int32),
            scale=0.125,
            **options,  # type: ignore[arg-type]
        )
        return found


def batch(
    lengths: list[int],
    *,
    block_size: int = 32,
    heads: int = 2,
    size: int = 64,
    dtype: torch.dtype = torch.float32,
) -> Batch:
    needed = [-(-length // block_size) for length in lengths]
    order = torch.randperm(sum(needed), generator=torch.Generator().manual_seed(1)) + 1
    table = torch.zeros(len(lengths), max(needed) + 1, dtype=torch.int32)
    made = pages(sum(needed) + 1, block_size, heads, size, dtype)
    for row, (length, blocks) in enumerate(zip(lengths, order.split(needed), strict=True)):
        table[row, : len(blocks)] = blocks
        position = torch.arange(length)
        slots = blocks[position // block_size] * block_size + position % block_size
        k, v = (draw(length, heads * size, dtype=dtype, seed=row + i) for i in (0, 100))
        made.store(k, v, slots)
    return Batch(pages=made, table=table, lengths=lengths)


def close(found: Tensor, right: Tensor, dtype: torch.dtype) -> None:
    assert float((found.float() - right.float()).abs().max()) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("block_size", [16, 32, 64, 128])
@pytest.mark.parametrize(("heads", "group", "size"), [(2, 2, 64), (1, 7, 32), (3, 1, 80)])
def test_decodes_and_chunks_of_a_batch(
    dtype: torch.dtype, block_size: int, heads: int, group: int, size: int
) -> None:
    made = batch([1, 300, 17, 130, 64], block_size=block_size, heads=heads, size=size, dtype=dtype)
    counts = [1, 1, 17, 70, 3]
    q = draw(sum(counts), heads * group, size, dtype=dtype)
    close(made.attend(q, counts, padding=3), made.right(q, counts), dtype)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("size", [1, 24, 32, 41, 48, 96, 112, 120, 128, 192, 240, 250, 256])
def test_head_sizes(dtype: torch.dtype, size: int) -> None:
    made = batch([40, 300], size=size, dtype=dtype)
    q = draw(6, 4, size, dtype=dtype)
    found = made.attend(q, [5, 1])
    close(found, made.right(q, [5, 1]), dtype)
    # Company, lanes and where a chunk begins change no bit.
    assert torch.equal(made.attend(q[4:5], [1], [0], [40], threads=1), found[4:5])
    assert torch.equal(made.attend(q[:2], [2], [0], [37], threads=3), found[:2])


def test_more_heads_than_a_block_has_rows() -> None:
    made = batch([90, 33], heads=1, size=32)
    q = draw(4, 71, 32)
    close(made.attend(q, [3, 1]), made.right(q, [3, 1]), torch.float32)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("window", [1, 5, 100, 256, 400])
def test_windows(dtype: torch.dtype, window: int) -> None:
    made = batch([700, 90, 300], dtype=dtype)
    counts = [1, 90, 40]
    q = draw(sum(counts), 4, 64, dtype=dtype)
    right = made.right(q, counts, window=window)
    found = made.attend(q, counts, window=window)
    close(found, right, dtype)
    # What has left every window is nobody's: the null block stands for it.
    for row, (length, count) in enumerate(zip(made.lengths, counts, strict=True)):
        made.table[row, : max(0, length - count + 1 - window) // 32] = 0
    assert torch.equal(made.attend(q, counts, window=window), found)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_soft_caps_and_alibi(dtype: torch.dtype) -> None:
    made = batch([301, 40], dtype=dtype)
    q = draw(26, 4, 64, dtype=dtype) * 4
    close(made.attend(q, [1, 25], softcap=2.0), made.right(q, [1, 25], softcap=2.0), dtype)
    slopes = torch.tensor([0.5, 0.25, 0.1, 0.01])
    alibi = slopes[:, None] * torch.arange(301)
    options = {"alibi": alibi, "window": 100}
    close(made.attend(q, [1, 25], **options), made.right(q, [1, 25], **options), dtype)  # type: ignore[arg-type]


def test_queries_and_results_of_another_dtype_than_the_cache() -> None:
    made = batch([50], dtype=torch.bfloat16)
    q = draw(20, 4, 64, dtype=torch.bfloat16)
    right = made.attend(q, [20], dtype=torch.float32)
    assert torch.equal(made.attend(q.float(), [20]), right)
    assert torch.equal(made.attend(q, [20]), right.bfloat16())


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    "options",
    [{}, {"window": 300}, {"softcap": 3.0}, {"alibi": SLOPES[:, None] * torch.arange(1100)}],
    ids=["plain", "window", "softcap", "alibi"],
)
def test_bits_do_not_depend_on_chunks_company_or_lanes(
    dtype: torch.dtype, options: dict[str, Any]
) -> None:
    length = 1100
    made = batch([length, 37, 600], dtype=dtype)
    q = draw(length, 6, 64, dtype=dtype)
    whole = made.attend(q, [length], [0], [length], **options)
    for chunk in (16, 333, 512):
        parts = [
            made.attend(
                q[at : at + chunk],
                [min(chunk, length - at)],
                [0],
                [min(at + chunk, length)],
                **options,
            )
            for at in range(0, length, chunk)
        ]
        assert torch.equal(torch.cat(parts), whole), chunk
    others = draw(8, 6, 64, dtype=dtype, seed=5)
    for position in (0, 15, 16, 255, 256, 257, 700, length - 1):
        row = q[position : position + 1]
        for threads in (1, 2, 5):
            alone = made.attend(row, [1], [0], [position + 1], threads=threads, **options)
            assert torch.equal(alone[0], whole[position]), (position, threads)
        counts, lengths = [1, 1, 7], [37, position + 1, 600]
        among = torch.cat((others[:1], row, others[1:]))
        found = made.attend(among, counts, [1, 0, 2], lengths, **options)
        assert torch.equal(found[1], whole[position]), position


def test_bits_do_not_depend_on_where_pages_lie_or_how_long_they_are() -> None:
    for dtype in TOLERANCE:
        q = draw(130, 4, 64, dtype=dtype)
        first = batch([400], block_size=16, dtype=dtype).attend(q, [130])
        for block_size in (32, 128):
            assert torch.equal(
                batch([400], block_size=block_size, dtype=dtype).attend(q, [130]), first
            )


def test_one_long_sequence_is_shared_by_the_lanes_to_the_bit() -> None:
    for dtype in TOLERANCE:
        made = batch([5000], heads=1, size=32, dtype=dtype)
        q = draw(3, 2, 32, dtype=dtype)
        alone = made.attend(q, [3], threads=1)
        close(alone, made.right(q, [3]), dtype)
        for threads in (2, 3, 7):
            assert torch.equal(made.attend(q, [3], threads=threads), alone)


def test_values_of_tokens_that_follow_are_not_read() -> None:
    """What lies behind a sequence's end in its last page is of whoever had the page before."""
    for dtype in TOLERANCE:
        made = batch([300], dtype=dtype)
        q = draw(1, 4, 64, dtype=dtype)
        for length in (1, 2, 31, 270):
            assert bool(made.attend(q, [1], lengths=[length]).isfinite().all())


@pytest.mark.parametrize("bad", [35, 299, 598])
@pytest.mark.parametrize(("length", "count"), [(600, 600), (600, 400), (2900, 3)])
def test_a_value_that_is_no_number_reaches_no_token_before_it(
    length: int, count: int, bad: int
) -> None:
    """0 times NaN is NaN, and tokens of one chunk are computed together."""
    bad += length - 600
    for dtype in TOLERANCE:
        made = batch([length], heads=1, dtype=dtype)
        q = draw(count, 3, 64, dtype=dtype)
        sound = made.attend(q, [count])
        slot = int(made.table[0, bad // 32]) * 32 + bad % 32
        k, v = draw(1, 64, dtype=dtype), torch.full((1, 64), torch.nan, dtype=dtype)
        made.pages.store(k, v, torch.tensor([slot]))
        found = made.attend(q, [count])
        first = max(0, bad - (length - count))
        assert torch.equal(found[:first], sound[:first])
        assert bool(found[first:].isnan().all())
