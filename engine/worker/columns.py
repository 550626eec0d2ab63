"""Sampling parameters by slot: numbers as columns, what only few rows ask for by slot."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from ..plan import Start
from ..request import SamplingParams, fold_seed
from .device import Device
from .edits import Edits, edits

_LEAST_TOP_P = float(np.finfo(np.float32).tiny)
"""What is smaller would become 0 in float32, and leave not even the first token."""

NONE = -2
"""Stands in an integer column for a count that was not asked for."""


class SamplingColumns:
    """One row a slot, on the host; `edits` and `refused` have an entry only where there is one.

    `key` has the 64 bits of the folded seed. `refused`: why a slot's parameters cannot be kept.
    """

    def __init__(
        self, num_slots: int, vocab_size: int, eos_token_ids: Iterable[int], device: Device
    ) -> None:
        self.temperature = np.zeros(num_slots, dtype=np.float32)
        self.top_p = np.ones(num_slots, dtype=np.float32)
        self.min_p = np.zeros(num_slots, dtype=np.float32)
        self.top_k = np.zeros(num_slots, dtype=np.int64)
        self.repetition = np.ones(num_slots, dtype=np.float32)
        self.frequency = np.zeros(num_slots, dtype=np.float32)
        self.presence = np.zeros(num_slots, dtype=np.float32)
        self.key = np.zeros(num_slots, dtype=np.int64)
        self.sibling = np.zeros(num_slots, dtype=np.int64)
        self.num_prompt = np.zeros(num_slots, dtype=np.int64)
        self.logprobs = np.full(num_slots, NONE, dtype=np.int64)
        self.prompt_logprobs = np.full(num_slots, NONE, dtype=np.int64)
        self.candidates = np.zeros(num_slots, dtype=np.int64)
        self.edited = np.zeros(num_slots, dtype=bool)
        self.edits: dict[int, Edits] = {}
        self.refused: dict[int, str] = {}
        self._vocab_size = vocab_size
        self._eos = frozenset(eos_token_ids)
        self._device = device

    def put(self, start: Start) -> None:
        """Take in the parameters of a sequence that enters its slot."""
        slot, params = start.slot, start.params
        self.drop(slot)
        self.temperature[slot] = 0.0 if params.greedy else params.temperature
        self.top_p[slot] = max(params.top_p, _LEAST_TOP_P)
        self.min_p[slot] = params.min_p
        self.top_k[slot] = params.top_k if params.top_k < self._vocab_size else 0
        self.repetition[slot] = params.repetition_penalty
        self.frequency[slot] = params.frequency_penalty
        self.presence[slot] = params.presence_penalty
        self.key[slot] = np.uint64(fold_seed(params.seed or 0)).view(np.int64)
        self.sibling[slot] = start.sibling
        self.num_prompt[slot] = start.num_prompt
        self.logprobs[slot] = self._asked(params.logprobs)
        self.prompt_logprobs[slot] = self._asked(params.prompt_logprobs)
        self.candidates[slot] = min(start.candidates, self._vocab_size)
        if reason := self._refuse(params):
            self.refused[slot] = reason
        elif found := edits(params, self._vocab_size, self._eos, self._device):
            self.edits[slot] = found
            self.edited[slot] = True

    def drop(self, slot: int) -> None:
        """Forget what a slot asked for, its callables above all."""
        self.edits.pop(slot, None)
        self.refused.pop(slot, None)
        self.edited[slot] = False

    def penalised(self, slots: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Which of these slots have a penalty."""
        plain = (self.repetition[slots] == 1) & (self.frequency[slots] == 0)
        mask: np.ndarray[Any, Any] = ~(plain & (self.presence[slots] == 0))
        return mask

    def _asked(self, count: int | None) -> int:
        """How many alternatives a row wants; -1 stands for all of them."""
        if count is None:
            return NONE
        return self._vocab_size if count < 0 else min(count, self._vocab_size)

    def _refuse(self, params: SamplingParams) -> str | None:
        words = (token for word in params.bad_words_ids for token in word)
        for name, ids in (
            ("logit_bias", params.logit_bias or ()),
            ("allowed_token_ids", params.allowed_token_ids or ()),
            ("bad_words_ids", words),
        ):
            for token in ids:
                if not 0 <= token < self._vocab_size:
                    return (
                        f"{name} holds token id {token}; the vocabulary has ids 0 to "
                        f"{self._vocab_size - 1}"
                    )
        return None
