"""A layer's view of the paged cache during one step."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from ...kernels import ops
from ..plan import CacheSpec
from .batch import ModelInput


class Pages(NamedTuple):
    """One layer's pages, and where this step's sequences lie in them."""

    kv: Tensor
    slots: Tensor
    block_table: Tensor
    query_start: Tensor
    kv_len: Tensor
    window: int | None
    plan: Any

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        scale: float,
        softcap: float | None = None,
        alibi: Tensor | None = None,
    ) -> Tensor:
        """Store this step's keys and values, then attend: [T, H * D]."""
        ops.store_kv(k, v, self.kv, self.slots)
        return self._look(q, scale, softcap, alibi)

    def turn_and_attend(
        self,
        heads: Tensor,
        angles: tuple[Tensor, Tensor],
        *,
        scale: float,
        norms: tuple[Tensor, Tensor, float] | None = None,
    ) -> Tensor:
        """As `attend`, of heads [T, H + 2 G, D] that `ops.turn_and_store` is still to turn."""
        q = ops.turn_and_store(heads, self.kv, self.slots, *angles, norms)
        return self._look(q, scale, None, None)

    def _look(self, q: Tensor, scale: float, softcap: float | None, alibi: Tensor | None) -> Tensor:
        found = ops.paged_attention(
            q,
            self.kv,
            self.block_table,
            self.query_start,
            self.kv_len,
            scale=scale,
            window=self.window,
            softcap=softcap,
            alibi=alibi,
            plan=self.plan,
        )
        return found.flatten(1)


def layer_pages(batch: ModelInput, specs: list[CacheSpec]) -> list[Pages]:
    """The pages of each layer; layers of one cache group share their plan."""
    plans: dict[int, Any] = {}
    pages = []
    for kv, group, spec in zip(batch.kv, batch.group_of, specs, strict=True):
        table = batch.block_tables[group]
        if group not in plans:
            plans[group] = ops.plan_attention(
                kv,
                table,
                batch.query_start,
                batch.kv_len,
                window=spec.window,
                max_query=batch.max_query,
                max_kv=batch.max_kv,
            )
        pages.append(
            Pages(
                kv,
                batch.slots[group],
                table,
                batch.query_start,
                batch.kv_len,
                spec.window,
                plans[group],
            )
        )
    return pages
