"""Drives a model through paged batches, the way a worker does."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from shoal.engine.model.batch import ModelInput
from shoal.engine.model.packing import pack
from shoal.engine.worker.cache import Cache
from shoal.engine.worker.device import pick
from shoal.engine.worker.forward import Limits
from shoal.engine.worker.graphs import forward_of
from shoal.engine.worker.progress import Progress
from shoal.kernels.cpu.bindings import Pool
from torch import Tensor


class PagedModel:
    """A model, its cache, and sequences in it; block ids are handed out in a shuffled order.

    Every cell that no sequence has written holds NaN, so that a stray read shows. A step is
    recorded and replayed, or called op by op (`eager`).
    """

    def __init__(
        self,
        model: Any,
        *,
        block_size: int = 16,
        num_blocks: int = 64,
        seed: int = 0,
        eager: bool = False,
    ) -> None:
        if isinstance(model, torch.nn.Module):
            pack(model)
        self.model = model
        self.block_size = block_size
        specs = model.cache_specs
        self.groups = sorted(set(specs), key=specs.index)
        self.group_of = [self.groups.index(spec) for spec in specs]
        dtype = next(model.parameters()).dtype
        self.kv = [
            torch.full((2, num_blocks, block_size, s.num_kv_heads, s.head_size), torch.nan).to(
                dtype
            )
            for s in specs
        ]
        ids = list(range(1, num_blocks))
        self.free = [random.Random(seed + g).sample(ids, len(ids)) for g in range(len(self.groups))]
        cache = Cache(
            layers=tuple(self.kv),
            groups=tuple(self.groups),
            group_of=tuple(self.group_of),
            block_size=block_size,
            device=pick("cpu"),
        )
        limits = Limits(tokens=1024, sequences=16, model_len=num_blocks * block_size, width=0)
        self.forward = forward_of(
            model, cache, limits, Progress(), dtype=dtype, pool=Pool(1), eager=eager
        )
        self.blocks: dict[str, list[list[int]]] = {}
        self.length: dict[str, int] = {}

    def step(self, rows: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
        """Compute each sequence's next tokens; logits [n, V] float32 of all of them."""
        tokens, positions, starts, lengths = [], [], [0], []
        slots: list[list[int]] = [[] for _ in self.groups]
        for name, new in rows.items():
            start = self.length.get(name, 0)
            places = range(start, start + len(new))
            self._grow(name, start + len(new))
            tokens += new
            positions += places
            starts.append(len(tokens))
            lengths.append(start + len(new))
            for group, blocks in enumerate(self.blocks[name]):
                size = self.block_size
                slots[group] += [blocks[p // size] * size + p % size for p in places]
            self.length[name] = start + len(new)
        batch = ModelInput(
            tokens=torch.tensor(tokens),
            positions=torch.tensor(positions),
            query_start=torch.tensor(starts, dtype=torch.int32),
            kv_len=torch.tensor(lengths, dtype=torch.int32),
            block_tables=[self._table(list(rows), g) for g in range(len(self.groups))],
            slots=[torch.tensor(s) for s in slots],
            kv=self.kv,
            group_of=self.group_of,
            wanted=torch.arange(len(tokens)),
            max_query=max(len(new) for new in rows.values()),
            max_kv=max(lengths),
        )
        with torch.inference_mode():
            logits = self.forward.logits(self.forward.hidden(batch))
        return {name: logits[a:b] for name, a, b in zip(rows, starts, starts[1:], strict=False)}

    def greedy(self, prompts: Mapping[str, Sequence[int]], count: int) -> dict[str, list[int]]:
        """`count` tokens of highest logit a prompt, all prompts side by side."""
        found: dict[str, list[int]] = {name: [] for name in prompts}
        rows = dict(prompts)
        for _ in range(count):
            rows = {name: [int(row[-1].argmax())] for name, row in self.step(rows).items()}
            for name, new in rows.items():
                found[name] += new
        return found

    def _grow(self, name: str, length: int) -> None:
        tables = self.blocks.setdefault(name, [[] for _ in self.groups])
        for group, table in enumerate(tables):
            while len(table) * self.block_size < length:
                table.append(self.free[group].pop())

    def _table(self, names: list[str], group: int) -> Tensor:
        tables = [self.blocks[name][group] for name in names]
        width = max(map(len, tables))
        return torch.tensor([t + [0] * (width - len(t)) for t in tables], dtype=torch.int32)


@pytest.fixture(scope="session")
def paged() -> type[PagedModel]:
    return PagedModel


@pytest.fixture(scope="session")
def random_model() -> Callable[..., Any]:
    """transformers' model of a configuration, its weights random and lively, saved to a folder."""

    def make(config: Any, folder: Path, seed: int = 0, **options: Any) -> Any:
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if ("norm" in name or "ln_" in name) and name.endswith("weight"):
                    weight.uniform_(0.5, 1.5)
                elif name.endswith("bias"):
                    weight.normal_(0, 0.1)
                else:
                    weight.normal_(0, 0.1)
        model.save_pretrained(folder, **options)
        return model

    return make
