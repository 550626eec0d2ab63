"""Paged attention in Triton: what is launched, and in tiles of what size. The contract is in `ops`.

Sequences of one query (decode) are computed split by split, all splits at once, and then combined;
longer queries (prefill) go in tiles of rows that walk over their keys. Both kernels run where a
batch may hold both kinds, and each leaves the other's sequences alone: the host need not know which
are which, and nothing waits for the device.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .attention_kernels import combine_kernel, decode_kernel, prefill_kernel
from .family import Family, family
from .room import num_splits
from .tile import power_of_two

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LARGEST_HEAD = 256


class Tiles(NamedTuple):
    """Rows of queries and keys of a tile, the warps of a program, and its stages: with n of them
    the tiles of n - 2 are on their way while one is computed.
    """

    rows: int
    keys: int
    warps: int
    stages: int


class Launch(NamedTuple):
    """How both kernels run; `exact`: so that they give a row the same bits."""

    decode: Tiles
    prefill: Tiles
    exact: bool


# By family and head size at most: decode, prefill.
TABLE = {
    (Family.HOPPER, 64): (Tiles(16, 128, 4, 3), Tiles(128, 128, 8, 3)),
    (Family.HOPPER, 128): (Tiles(16, 64, 4, 3), Tiles(128, 64, 8, 4)),
    (Family.HOPPER, 256): (Tiles(16, 32, 4, 3), Tiles(64, 64, 8, 3)),
    (Family.AMPERE, 64): (Tiles(16, 128, 4, 3), Tiles(128, 64, 8, 3)),
    (Family.AMPERE, 128): (Tiles(16, 64, 4, 3), Tiles(128, 64, 8, 3)),
    (Family.AMPERE, 256): (Tiles(16, 32, 4, 3), Tiles(64, 32, 8, 3)),
    (Family.SAFE, 64): (Tiles(16, 64, 4, 3), Tiles(64, 32, 4, 3)),
    (Family.SAFE, 128): (Tiles(16, 32, 4, 3), Tiles(64, 32, 4, 3)),
    (Family.SAFE, 256): (Tiles(16, 16, 4, 3), Tiles(32, 16, 4, 3)),
}
# One kind of tile for both kernels, large enough for prefill and still bound by memory in decode.
EXACT = {
    (Family.HOPPER, 64): Tiles(64, 64, 4, 3),
    (Family.HOPPER, 128): Tiles(64, 64, 8, 3),
    (Family.HOPPER, 256): Tiles(32, 64, 8, 3),
    (Family.AMPERE, 64): Tiles(64, 64, 8, 3),
    (Family.AMPERE, 128): Tiles(64, 32, 8, 3),
    (Family.AMPERE, 256): Tiles(32, 64, 8, 3),
    (Family.SAFE, 64): Tiles(32, 32, 4, 3),
    (Family.SAFE, 128): Tiles(32, 32, 8, 3),
    (Family.SAFE, 256): Tiles(32, 16, 8, 3),
}
# Without tensor cores: float32, which takes twice the room too, and GPUs before Ampere.
WIDE = Tiles(16, 16, 4, 1)


class Plan:
    """A step's attention: the longest of the batch, and room for decode's partial sums.

    The room is made when the first layer says how many heads it has, and shared by the others.
    """

    def __init__(self, max_query: int, max_kv: int) -> None:
        self.max_query = max_query
        self.num_splits = num_splits(max_kv)
        self._room: tuple[Tensor, Tensor] | None = None

    def room(self, num_sequences: int, q: Tensor) -> tuple[Tensor, Tensor]:
        """parts [B, H, splits, D] and marks [B, H, splits, 2] of `decode_kernel`."""
        shape = (num_sequences, q.shape[1], self.num_splits)
        if self._room is None or self._room[0].shape != (*shape, q.shape[2]):
            parts, marks = (q.new_empty(*shape, n, dtype=torch.float32) for n in (q.shape[2], 2))
            self._room = parts, marks
        return self._room


def choose(
    head_size: int,
    group: int,
    dtype: torch.dtype,
    kind: Family,
    exact: bool = False,
    alibi: bool = False,
) -> Launch:
    """The tiles for heads of a size, `group` query heads to a key-value head.

    Alibi is a tile more to hold, loaded as keys are: it leaves room for fewer of these.
    """
    if dtype is torch.float32 or kind is Family.OLD:
        # Large heads spill on sm_70 in 8 warps, and in 16 where multiply-add is not fused.
        many = 16 if kind is Family.OLD and not exact else 8
        decode = prefill = WIDE if head_size <= 128 else WIDE._replace(warps=many)
    else:
        key = kind, next(size for size in (64, 128, LARGEST_HEAD) if head_size <= size)
        decode, prefill = (EXACT[key], EXACT[key]) if exact else TABLE[key]
    least = power_of_two(group)

    def fitted(tiles: Tiles) -> Tiles:
        tiles = tiles._replace(rows=max(tiles.rows, least))
        if alibi:
            tiles = tiles._replace(keys=min(tiles.keys, 32), stages=min(tiles.stages, 2))
            if kind is Family.SAFE and tiles.rows == tiles.keys == 32:
                # Triton 3.7 cannot compile such for AMD, nor 4 warps for Blackwell without spills.
                tiles = tiles._replace(keys=16, warps=8)
        return tiles

    return Launch(fitted(decode), fitted(prefill), exact)


def plan_attention(
    kv: Tensor,
    block_table: Tensor,
    query_start: Tensor,
    kv_len: Tensor,
    *,
    window: int | None = None,
    max_query: int,
    max_kv: int,
) -> Plan:
    return Plan(max_query, max_kv)


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
    exact: bool = False,
) -> Tensor:
    """See `ops`. `exact`: a row gets the same bits whatever else is in the batch.

    Raises ValueError for heads above LARGEST_HEAD.
    """
    num_rows, num_heads, head_size = q.shape
    block_size, num_kv_heads = kv.shape[2], kv.shape[3]
    if head_size > LARGEST_HEAD:
        raise ValueError(f"paged_attention: heads of {head_size}, of at most {LARGEST_HEAD} here")
    num_sequences = len(kv_len)
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    if not num_sequences or not num_rows:
        return out.zero_()
    if plan is None:  # bounds that are known without asking the device
        plan = Plan(num_rows, block_table.shape[1] * block_size)
    group = num_heads // num_kv_heads
    launch = choose(head_size, group, q.dtype, family(q.device), exact, alibi is not None)
    common = _common(q, kv, block_table, query_start, kv_len, scale, window, softcap, alibi)
    if plan.max_query > 1:
        tiles = launch.prefill
        queries = tiles.rows // group
        prefill_kernel[(num_rows // queries + num_sequences, num_kv_heads)](
            out, q, kv, *common.tensors, num_sequences, *common.numbers,
            **common.constants, SPLIT=exact, **_size(tiles, exact),
        )  # fmt: skip
    parts, marks = plan.room(num_sequences, q)
    splits = plan.num_splits
    decode_kernel[(splits, num_kv_heads, num_sequences)](
        parts, marks, q, kv, *common.tensors, splits, *common.numbers,
        **common.constants, **_size(launch.decode, exact),
    )  # fmt: skip
    combine_kernel[(num_rows, num_heads)](
        out, parts, marks, query_start, kv_len, num_sequences, splits, window or 0,
        num_heads, head_size, common.constants["BLOCK_D"], window is not None,
        num_warps=1, enable_fp_fusion=not exact,
    )  # fmt: skip
    return out


class _Common(NamedTuple):
    """What both kernels take, in their order: first the tensors behind q and kv, then numbers."""

    tensors: tuple[Tensor, ...]
    numbers: tuple[float, ...]
    constants: dict[str, int | bool]


def _common(
    q: Tensor,
    kv: Tensor,
    block_table: Tensor,
    query_start: Tensor,
    kv_len: Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
    alibi: Tensor | None,
) -> _Common:
    heads, head_size = q.shape[1:]
    strides = (*q.stride()[:2], *kv.stride()[:3], block_table.stride(0))
    return _Common(
        (block_table, query_start, kv_len, q if alibi is None else alibi),
        (scale, softcap or 1.0, window or 0, *strides, 0 if alibi is None else alibi.stride(0)),
        {
            "H": heads,
            "GROUP": heads // kv.shape[3],
            "P": kv.shape[2],
            "D": head_size,
            "BLOCK_D": power_of_two(head_size, least=16),
            "WINDOW": window is not None,
            "SOFTCAP": softcap is not None,
            "ALIBI": alibi is not None,
        },
    )


def _size(tiles: Tiles, exact: bool) -> dict[str, int | bool]:
    """Without fused multiply-add both kernels round alike, however they were compiled."""
    return {
        "M": tiles.rows,
        "N": tiles.keys,
        "num_warps": tiles.warps,
        "num_stages": tiles.stages,
        "enable_fp_fusion": not exact,
    }
