"""From logits to tokens: the whole batch at once, each row paying only for what it asked.

The order is: log probabilities of the raw logits; then allowed ids, bias, bad words and least
length; penalties; processors; temperature; min_p, top_k, top_p; the draw. A row that cannot be
sampled is reported and leaves the others as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...kernels import ops
from ..plan import Candidate
from ..request import TokenLogprobs
from .columns import NONE, SamplingColumns
from .device import Device, Download
from .edits import Amounts, Edits
from .slots import Slots

Array = np.ndarray[Any, Any]

IDS_AT_ONCE = 1 << 20
"""Most token ids that penalties look at together: they take about 70 bytes each on the way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """A token a row, on the host; of a row in `failed` (row to reason) it is 0 and means nothing.

    `logprobs` and `candidates` have an entry for the rows that asked.
    """

    ids: list[int]
    logprobs: dict[int, TokenLogprobs]
    candidates: dict[int, tuple[Candidate, ...]]
    failed: dict[int, str]


class Drawing(NamedTuple):
    """What was drawn: `tokens` [S] int64 on the device, and `read`, which waits for all of it.

    Only `read` waits for the device, where nobody asked for what the host must see on the way:
    bad words of several tokens and processors.
    """

    tokens: Tensor
    read: Callable[[], Sampled]


class _Broken(NamedTuple):
    """Rows, and whether each had a NaN before anything was masked."""

    rows: list[int]
    found: Download


class Sampler:
    """Samples for the sequences in `slots` by the parameters in `columns`."""

    def __init__(self, slots: Slots, columns: SamplingColumns, device: Device) -> None:
        self._slots = slots
        self._columns = columns
        self._device = device

    def sample(self, logits: Tensor, slot: Array, position: Array) -> Drawing:
        """Draw a token a row.

        logits [S, V] float32, overwritten; slot, position [S] int64: whose row it is, and where the
        token goes.
        """
        columns = self._columns
        choosers = np.flatnonzero(columns.candidates[slot])
        if len(choosers):  # edits apply to log probabilities, which then add up to scores
            index = self._index(choosers)
            logits[index] = normal = ops.log_softmax(logits[index])
        asked = np.flatnonzero((columns.logprobs[slot] != NONE) & (columns.candidates[slot] == 0))
        raw = ops.log_softmax(_rows(logits, self._index(asked))) if len(asked) else None
        failed, broken = self._edit(logits, slot, position)
        top, tokens = ops.greatest(logits)
        tokens = self._draw(logits, top, tokens, slot, position)
        tokens, drawn = self._settled(top, tokens)
        scores: Callable[[], list[TokenLogprobs]] = list
        candidates: Callable[[], list[tuple[Candidate, ...]]] = list
        if raw is not None:
            most = columns.logprobs[slot[asked]]
            scores = score(raw, tokens[self._index(asked)], most, self._device)
        if len(choosers):
            at = slot[choosers]
            candidates = rank_candidates(
                normal,
                logits[index],
                columns.candidates[at],
                np.maximum(columns.logprobs[at], 0),
                self._device,
            )

        def read() -> Sampled:
            if broken is not None:
                for row, is_broken in zip(broken.rows, broken.found.read().tolist(), strict=True):
                    if is_broken:
                        failed.setdefault(row, _unusable(np.nan))
            return Sampled(
                ids=_usable(drawn, failed),
                logprobs=dict(zip(asked.tolist(), scores(), strict=True)),
                candidates=dict(zip(choosers.tolist(), candidates(), strict=True)),
                failed=failed,
            )

        return Drawing(tokens, read)

    def takes_greatest(self, slot: Array) -> bool:
        """Whether these rows want their greatest raw logit each, and to know of no other."""
        columns = self._columns
        return not (
            (columns.temperature[slot] > 0)
            | (columns.candidates[slot] != 0)
            | (columns.logprobs[slot] != NONE)
            | columns.edited[slot]
            | columns.penalised(slot)
        ).any()

    def take(self, top: Tensor, tokens: Tensor) -> Drawing:
        """As `sample`, for rows that take their greatest logit: `top` [S] float32 of `tokens`."""
        tokens, drawn = self._settled(top, tokens)

        def read() -> Sampled:
            failed: dict[int, str] = {}
            ids = _usable(drawn, failed)
            return Sampled(ids=ids, logprobs={}, candidates={}, failed=failed)

        return Drawing(tokens, read)

    def _settled(self, top: Tensor, tokens: Tensor) -> tuple[Tensor, Download]:
        """The tokens, 0 of rows whose greatest logit is none, and both on their way to the host."""
        tokens = torch.where(top.abs() < torch.inf, tokens, 0)
        return tokens, self._device.download(torch.stack((tokens.double(), top.double())))

    def _edit(
        self, logits: Tensor, slot: Array, position: Array
    ) -> tuple[dict[int, str], _Broken | None]:
        """Everything that changes logits before the temperature, in place; what failed, and
        whether rows were NaN before a mask hid it.
        """
        columns: SamplingColumns = self._columns
        failed: dict[int, str] = {}
        broken = None
        if columns.refused:
            failed = {
                row: columns.refused[at]
                for row, at in enumerate(slot.tolist())
                if at in columns.refused
            }
        edited = np.flatnonzero(columns.edited[slot])
        if len(edited):
            broken = self._mask(logits, edited, slot, position)
        penalised = np.flatnonzero(columns.penalised(slot))
        if len(penalised):
            self._penalize(logits, penalised, slot[penalised], position[penalised])
        for row in edited.tolist():
            at = int(slot[row])
            if columns.edits[at].processors:
                reason = self._process(logits[row], at, int(position[row]))
                if reason is not None:
                    failed.setdefault(row, reason)
        return failed, broken

    def _mask(self, logits: Tensor, rows: Array, slot: Array, position: Array) -> _Broken:
        """Allowed ids, bias, bad words and least length of these rows, in place; whether each had
        a NaN.
        """
        upload = self._device.upload
        masks: list[Tensor] = []
        which = np.full(len(rows), -1)
        found: list[Amounts] = []
        for i, row in enumerate(rows.tolist()):
            at, place = int(slot[row]), int(position[row])
            edits = self._columns.edits[at]
            if edits.allowed is not None:
                which[i] = len(masks)
                masks.append(edits.allowed)
            completing = self._completing(edits, at, place)
            found.append(edits.amounts(self._num_emitted(at, place), completing, self._device))
        starts = np.cumsum([0, *(len(each.ids) for each in found)])
        broken = ops.mask(
            logits,
            self._index(rows),
            torch.stack(masks) if masks else logits.new_empty(0, 1, dtype=torch.int32),
            upload(which),
            upload(starts),
            torch.cat([each.ids for each in found]),
            torch.cat([each.amounts for each in found]),
        )
        return _Broken(rows.tolist(), self._device.download(broken))

    def _completing(self, edits: Edits, slot: int, position: int) -> list[int]:
        """The tokens that would complete a bad word of several of a row."""
        if edits.phrases is None:
            return []
        reach = min(edits.phrases.reach, self._num_emitted(slot, position))
        return edits.phrases.completing(self._slots.emitted(slot, position - reach, position))

    def _num_emitted(self, slot: int, position: int) -> int:
        return position - int(self._columns.num_prompt[slot])

    def _penalize(self, logits: Tensor, rows: Array, slot: Array, position: Array) -> None:
        columns, upload = self._columns, self._device.upload
        length = int(position.max())
        most = max(1, IDS_AT_ONCE // length)
        for first in range(0, len(rows), most):
            piece = slice(first, first + most)
            at = slot[piece]
            ops.penalize(
                logits,
                upload(rows[piece]),
                self._slots.ids[:, :length].index_select(0, upload(at)),
                upload(columns.num_prompt[at]),
                upload(position[piece]),
                upload(columns.repetition[at]),
                upload(columns.frequency[at]),
                upload(columns.presence[at]),
            )

    def _process(self, logits: Tensor, slot: int, position: int) -> str | None:
        """Run a row's processors over a copy of it; the reason if that went wrong."""
        begin = int(self._columns.num_prompt[slot])
        emitted = self._slots.emitted(slot, begin, position).tolist()
        value: Any = logits.clone()
        for processor in self._columns.edits[slot].processors:
            try:
                value = processor(emitted, value)
            except Exception as error:
                return f"a logits processor raised {type(error).__name__}: {error}"
            if not isinstance(value, Tensor) or value.shape != logits.shape:
                shape = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
                return f"a logits processor returned {shape}, not a tensor {list(logits.shape)}"
        try:
            logits.copy_(value)
        except Exception as error:
            return f"a logits processor returned a tensor that cannot be read: {error}"
        return None

    def _draw(
        self, logits: Tensor, top: Tensor, tokens: Tensor, slot: Array, position: Array
    ) -> Tensor:
        """`tokens` with the rows that are not greedy replaced by a draw."""
        columns = self._columns
        drawn = columns.temperature[slot] > 0
        if not drawn.any():
            return tokens
        cut = (columns.top_k[slot] > 0) | (columns.min_p[slot] > 0)
        nucleus = columns.top_p[slot] < 1
        top = torch.where(torch.isfinite(top), top, 0.0)
        for kind, op in (
            (drawn & cut, self._draw_cut),
            (drawn & ~cut & nucleus, self._draw_nucleus),
            (drawn & ~cut & ~nucleus, lambda x, u, _: ops.draw_any(x, u)),
        ):
            rows = np.flatnonzero(kind)
            if len(rows):
                at, index = slot[rows], self._index(rows)
                temperature = self._device.upload(columns.temperature[at])
                x = ops.temper(logits, index, top[index], temperature)
                tokens[index] = op(x, self._uniform(at, position[rows]), at)
        return tokens

    def _draw_cut(self, x: Tensor, u: Tensor, slot: Array) -> Tensor:
        columns, upload = self._columns, self._device.upload
        top_k = columns.top_k[slot]
        return ops.draw_cut(
            x,
            u,
            upload(top_k),
            int(top_k.max()),
            upload(columns.min_p[slot]),
            upload(columns.top_p[slot]),
        )

    def _draw_nucleus(self, x: Tensor, u: Tensor, slot: Array) -> Tensor:
        return ops.draw_nucleus(x, u, self._device.upload(self._columns.top_p[slot]))

    def _uniform(self, slot: Array, position: Array) -> Tensor:
        columns, upload = self._columns, self._device.upload
        return ops.keyed_uniform(
            upload(columns.key[slot]), upload(position), upload(columns.sibling[slot])
        )

    def _index(self, rows: Array) -> Tensor:
        return self._device.upload(rows)


def score(
    logprobs: Tensor, tokens: Tensor, most: Array, device: Device
) -> Callable[[], list[TokenLogprobs]]:
    """Of each row the token's log probability and rank, and the `most` top ones, once called.

    logprobs [R, V] float32, tokens [R] int64, most [R] int64. A token's rank is one more than the
    number of tokens more probable; equal ones are listed by id.
    """
    chosen = logprobs.gather(1, tokens[:, None])
    ranks = ops.count_above(logprobs, chosen) + 1
    parts = [chosen[:, 0], ranks[:, 0]]
    if greatest := int(most.max()):
        parts += ops.top_tokens(logprobs, greatest)
    found = [device.download(part) for part in parts]

    def read() -> list[TokenLogprobs]:
        values, places, *tops = (part.read().tolist() for part in found)
        ids, kept = tops or ([()] * len(values), [()] * len(values))
        return [
            TokenLogprobs(value, rank, tuple(_top(row_ids[:count], row_kept[:count])))
            for value, rank, count, row_ids, row_kept in zip(
                values, places, most.tolist(), ids, kept, strict=True
            )
        ]

    return read


def rank_candidates(
    raw: Tensor, scores: Tensor, num: Array, most: Array, device: Device
) -> Callable[[], list[tuple[Candidate, ...]]]:
    """Of each row the `num` tokens of the greatest scores, with their raw log probabilities, once
    called.

    raw, scores [R, V] float32; num, most [R] int64: `most` top ones come with each.
    """
    ids, values = ops.top_tokens(scores, int(num.max()))
    chosen = raw.gather(1, ids)
    ranks = ops.count_above(raw, chosen) + 1
    tops = score(raw, ids[:, 0], most, device)
    found = [device.download(part) for part in (ids, values, chosen, ranks)]

    def read() -> list[tuple[Candidate, ...]]:
        columns = (part.read().tolist() for part in found)
        return [
            tuple(
                Candidate(token, value, TokenLogprobs(logprob, rank, top.top))
                for token, value, logprob, rank in list(zip(*row, strict=True))[:count]
                if value > -torch.inf
            )
            for row, top, count in zip(
                zip(*columns, strict=True), tops(), num.tolist(), strict=True
            )
        ]

    return read


def _top(ids: list[int], values: list[float]) -> list[tuple[int, float]]:
    return [(token, value) for token, value in zip(ids, values, strict=True) if value > -torch.inf]


def _rows(values: Tensor, index: Tensor) -> Tensor:
    """Some rows, without a copy where they are all."""
    return values if len(index) == len(values) else values[index]


def _usable(drawn: Download, failed: dict[int, str]) -> list[int]:
    """The ids of what was drawn; rows whose greatest logit is no number join `failed`."""
    ids, tops = drawn.read().tolist()
    for row, value in enumerate(tops):
        if not -np.inf < value < np.inf:
            failed.setdefault(row, _unusable(value))
    return [int(token) for token in ids]


def _unusable(top: float) -> str:
    if top == -np.inf:
        return "no token is left to choose: every one is masked"
    kind = "infinite" if top == np.inf else "not a number"
    return f"the logits of this row are {kind}"
