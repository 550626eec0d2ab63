"""A model whose logits at a position are a random function of all tokens up to it.

It finds those tokens in the paged cache alone, so any fault in ids, positions, tables, slots or
copies changes its answers. `play` drives a runner as a scheduler would.
"""

from __future__ import annotations

import torch
from shoal.engine.model.batch import ModelInput
from shoal.engine.plan import CacheSpec, Plan, Row, Start
from shoal.engine.worker.cache import allocate
from shoal.engine.worker.columns import SamplingColumns
from shoal.engine.worker.device import pick
from shoal.engine.worker.graphs import Plain
from shoal.engine.worker.progress import Progress
from shoal.engine.worker.runner import Runner
from shoal.engine.worker.team import alone

VOCAB = 61
STATES = 4093
BLOCK = 4
EOS = frozenset({0})


class PrefixModel:
    """Layer 0 sees everything, layer 1 a window of 5, layer 2 is of layer 0's group."""

    cache_specs = (CacheSpec(1, 2), CacheSpec(1, 2, 5), CacheSpec(1, 2))

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.table = torch.randn(STATES, VOCAB, generator=generator) * 2
        self.batches: list[ModelInput] = []

    def forward(self, batch: ModelInput, hidden: torch.Tensor | None = None) -> torch.Tensor:
        self.batches.append(batch)
        states = torch.zeros(len(batch.tokens), dtype=torch.int64)
        for layer, kv in enumerate(batch.kv):
            group, window = batch.group_of[layer], self.cache_specs[layer].window
            cells = kv[0].flatten(0, 1)[:, 0, 0]
            cells[batch.slots[group]] = batch.tokens.float() + layer
            states = self._read(batch, cells, group, window, states)
        return states[:, None].float()

    def _read(self, batch, cells, group, window, states):
        states = states.clone()
        for row in range(len(batch.kv_len)):
            begin, end = batch.query_start[row : row + 2].tolist()
            assert end - begin <= batch.max_query and batch.kv_len[row] <= batch.max_kv
            for at in range(begin, end):
                upto = int(batch.kv_len[row]) - (end - begin) + (at - begin) + 1
                assert int(batch.positions[at]) == upto - 1
                for place in range(max(0, upto - window) if window else 0, upto):
                    block = int(batch.block_tables[group][row, place // BLOCK])
                    value = int(cells[block * BLOCK + place % BLOCK])
                    states[at] = (states[at] * 31 + value * 7 + 1) % STATES
        return states

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.table[hidden[:, 0].long()].clone()

    def greatest(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        top, tokens = self.logits(hidden).max(-1)
        return top, tokens


def runner(model, num_blocks=64, num_slots=20):
    """A runner over a cache full of what must never be read."""
    device = pick("cpu")
    cache = allocate(
        model.cache_specs,
        tuple(dict.fromkeys(model.cache_specs)),
        num_blocks,
        BLOCK,
        torch.float32,
        device,
    )
    for layer in cache.layers:
        layer.fill_(torch.nan)
    columns = SamplingColumns(num_slots, VOCAB, EOS, device)
    found = Runner(
        Plain(model, torch.float32),
        cache,
        columns,
        num_slots=num_slots,
        vocab_size=VOCAB,
        width=1,
        dtype=torch.float32,
        device=device,
        team=alone(),
        progress=Progress(),
    )
    return found, cache


def blocks_for(num_tokens, first, groups=2):
    """Distinct blocks for every group, from `first` on and out of order."""
    count = -(-num_tokens // BLOCK)
    return tuple(tuple(range(first + count - 1, first - 1, -1)) for _ in range(groups))


def play(run, params, prompt, steps, *, slot=3, chunk=1000, emitted=(), first=1, sibling=0):
    """Generate alone, in chunks of the prompt: tokens, log probabilities, prompt scores."""
    tokens = (*prompt, *emitted)
    total = len(tokens) + steps
    blocks = blocks_for(total, first)
    have = -(-min(chunk, len(tokens)) // BLOCK)
    started = [Start(slot, tokens, len(prompt), tuple(b[:have] for b in blocks), params, sibling)]
    out, logprobs, scores, failed = [], [], [], {}
    at, upto = 0, len(tokens)
    while upto < total and not failed:
        count = min(chunk, upto - at)
        need = -(-(at + count) // BLOCK)
        grown = () if started else tuple(b[have:need] for b in blocks)
        have = max(have, need)
        row = Row(slot, at, count, grown, at + count == upto)
        result = run.run(Plan(step=0, started=tuple(started), rows=(row,)))
        started, at, failed = [], at + count, result.failed
        scores += result.prompt_logprobs.get(slot, ())
        if at == upto:
            out += result.tokens[0]
            logprobs += result.logprobs[0] if result.logprobs else ()
            upto += 1
    return out, logprobs, scores, failed
