"""From documents to rows of token ids: rendering, which tokens to learn, packing."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator

import torch
from transformers import PreTrainedTokenizerFast

from .corpus.exercise import Exercise
from .vocabulary import END, END_OF_TEXT, START

# A word of the user is learned a little too: it teaches the shape of language.
_WEIGHT_OF_OTHERS = 0.1
LENGTHS = (256, 512)
_WAITING = 64


class Renderer:
    """Turns documents into ids and a weight in the loss for each of them."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer
        self.end_of_text = self._id(END_OF_TEXT)
        self._end = self._id(END)
        self._answer = self._backend.encode(f"{START}assistant\n").ids

    def _id(self, token: str) -> int:
        return int(self._backend.token_to_id(token))

    def __call__(self, document: Exercise | str) -> tuple[list[int], list[float]]:
        """Ids, ended by <|endoftext|>, and their weights."""
        if isinstance(document, str):
            ids = [*self._backend.encode(document).ids, self.end_of_text]
            return ids, [1.0] * len(ids)
        text = self._tokenizer.apply_chat_template(
            document.messages, tools=list(document.tools) or None, tokenize=False
        )
        ids = self._backend.encode(text).ids
        return [*ids, self.end_of_text], [*self._weights(ids), _WEIGHT_OF_OTHERS]

    def _weights(self, ids: list[int]) -> list[float]:
        """1 for what the assistant says up to its <|im_end|>."""
        weights = [_WEIGHT_OF_OTHERS] * len(ids)
        width, speaking = len(self._answer), False
        for place in range(width, len(ids)):
            speaking = speaking or ids[place - width : place] == self._answer
            if speaking:
                weights[place] = 1.0
                speaking = ids[place] != self._end
        return weights


class Packer:
    """Endless rows made of whole documents, as many as fit, the rest filled up unlearned."""

    def __init__(self, documents: Iterator[Exercise | str], renderer: Renderer, seed: int) -> None:
        self._documents = documents
        self._render = renderer
        self._rng = random.Random(seed)
        self._waiting: deque[tuple[list[int], list[float]]] = deque()

    def batches(self, tokens: int) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Micro-batches of about `tokens`: ids, targets and weights, each [rows, length].

        Most rows are short, because attention is the larger part of the time on a CPU; some are
        long so that far positions are learned. A conversation longer than the longest is left out.
        """
        while True:
            self._refill()
            length = self._rng.choices(LENGTHS, (0.8, 0.2))[0]
            if sum(len(ids) > LENGTHS[0] for ids, _ in self._waiting) > _WAITING // 2:
                length = LENGTHS[1]
            ids, weights = zip(
                *(self._row(length + 1) for _ in range(tokens // length)), strict=True
            )
            rows, weight = torch.tensor(ids), torch.tensor(weights)
            yield rows[:, :-1].contiguous(), rows[:, 1:].contiguous(), weight[:, 1:].contiguous()

    def _refill(self) -> None:
        while len(self._waiting) < _WAITING:
            document = self._render(next(self._documents))
            if len(document[0]) <= LENGTHS[-1]:
                self._waiting.append(document)

    def _row(self, length: int) -> tuple[list[int], list[float]]:
        self._refill()
        ids: list[int] = []
        weights: list[float] = []
        for _ in range(_WAITING):
            document = self._waiting.popleft()
            if len(ids) + len(document[0]) <= length:
                ids += document[0]
                weights += document[1]
            else:
                self._waiting.append(document)
        missing = length - len(ids)
        return ids + [self._render.end_of_text] * missing, weights + [0.0] * missing
