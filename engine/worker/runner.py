"""One plan on one rank: copies, forward pass, logits, sampling, and the answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...kernels import ops
from ..model.batch import ModelInput
from ..plan import Candidate, Plan, Result
from ..request import TokenLogprobs
from ..sizing import PIECE_BYTES
from .cache import Cache
from .columns import SamplingColumns
from .device import Device, Mark
from .forward import Forward
from .inputs import Array, Layout, lay_out, model_input
from .progress import Progress
from .sampler import Drawing, Sampled, Sampler, score
from .slots import Slots
from .team import Team


class Launched:
    """A plan that the device computes; `result` waits for it, and is called once.

    `done`: whether it would not have to wait.
    """

    def __init__(self, finish: Callable[[], Result], done: Callable[[], bool]) -> None:
        self.result = finish
        self.done = done


class _Piece(NamedTuple):
    """Rows drawn together: the first of them, their slots, and how what came of it is read."""

    first: int
    slot: Array
    read: Callable[[], Sampled]


class _Drawn(NamedTuple):
    """Ids and log probabilities by sampled row, candidates and failures by slot."""

    ids: list[int]
    logprobs: dict[int, TokenLogprobs]
    candidates: dict[int, tuple[Candidate, ...]]
    failed: dict[int, str]


class Runner:
    """Runs plans in order over a forward, its cache and its device rows."""

    def __init__(
        self,
        forward: Forward,
        cache: Cache,
        columns: SamplingColumns,
        *,
        num_slots: int,
        vocab_size: int,
        width: int,
        dtype: torch.dtype,
        device: Device,
        team: Team,
        progress: Progress,
    ) -> None:
        self._forward = forward
        self._cache = cache
        self._columns = columns
        self._device = device
        self._slots = Slots(num_slots, len(cache.groups), device)
        self._sampler = Sampler(self._slots, columns, device)
        self._piece = max(1, PIECE_BYTES // (4 * vocab_size))
        self._width, self._handed = width, device.handed(dtype)
        self._team, self._mesh, self._seat = team, team.mesh, team.seat
        self._progress = progress
        self._last: Mark | None = None

    def run(self, plan: Plan) -> Result:
        """Compute a plan. Rows fail by themselves; an exception is the whole rank's.

        On a rank that does not sample the result is empty.
        """
        return self.launch(plan).result()

    @torch.inference_mode()
    def launch(self, plan: Plan) -> Launched:
        """As `run`, but a device that computes by itself is only told what to do, and the next plan
        may be launched before this one's result is read.
        """
        self._device.enter()
        follows = self._progress.is_under_way
        self._progress.begin(plan.step, sum(row.num_tokens for row in plan.rows))
        self._enter(plan)
        nothing = Launched(lambda: Result(step=plan.step, tokens=()), lambda: True)
        if not plan.rows:
            return nothing
        layout = lay_out(plan.rows, self._columns)
        batch = model_input(layout, self._slots, self._cache, self._device)
        ready = self._device.mark()
        hidden = self._hidden(batch)
        if not self._seat.last:
            self._progress.at("handing over to the next stage")
            self._team.send(hidden.to(self._handed, copy=True))
            return nothing
        num_sampled = len(layout.sampled)
        pieces = self._sample(layout, hidden[:num_sampled])
        prompts = self._score_prompts(layout, hidden[num_sampled:])
        if not self._seat.answers:
            return nothing
        refused = self._columns.refused
        refused = {slot: refused[slot] for slot in layout.slot.tolist() if slot in refused}

        before, self._last = self._last, self._device.mark()
        ended = self._last

        def finish() -> Result:
            """Wait for what was drawn; once, for it is read from the device only then."""
            drawn = _gathered(pieces)
            if follows and before is not None:
                self._progress.gaps.append(ready.since_s(before))
            return Result(
                step=plan.step,
                tokens=tuple((token,) for token in drawn.ids),
                logprobs=_by_row(drawn.logprobs, num_sampled),
                prompt_logprobs={
                    slot: tuple(entry for read in reads for entry in read())
                    for slot, reads in prompts.items()
                },
                candidates=drawn.candidates,
                failed=drawn.failed | refused,
            )

        return Launched(finish, ended.passed)

    def _hidden(self, batch: ModelInput) -> Tensor:
        """This stage's hidden states, from tokens or from those of the stage before."""
        if self._seat.first:
            return self._forward.hidden(batch)
        self._progress.at("waiting for the stage before")
        hidden = self._device.empty(len(batch.tokens), self._width, dtype=self._handed)
        since = time.monotonic()
        hidden = self._team.receive(hidden)
        self._progress.waited(since)
        return self._forward.hidden(batch, hidden)

    def _enter(self, plan: Plan) -> None:
        """Bring the device rows and the cache up to date with a plan."""
        for slot in plan.stopped:
            self._columns.drop(slot)
        for start in plan.started:
            self._columns.put(start)
        self._slots.start(plan.started)
        self._slots.grow(plan.rows)
        self._cache.copy(plan.copies)

    def _sample(self, layout: Layout, hidden: Tensor) -> list[_Piece]:
        """Draw for the sampled rows, a piece at a time."""
        slot, position = layout.slot[layout.sampled], layout.positions
        made = []
        for first in range(0, len(slot), self._piece):
            piece = slice(first, first + self._piece)
            self._progress.at("sampling")
            drawn = self._drawn(hidden[piece], slot[piece], position[piece])
            if drawn is not None:
                made.append(_Piece(first, slot[piece], drawn.read))
            tokens = self._told(drawn.tokens if drawn else None, len(slot[piece]))
            at, place = self._device.upload_all(slot[piece], position[piece])
            self._slots.write_sampled(at, place, tokens, int(position.max()))
        return made

    def _drawn(self, hidden: Tensor, slot: Array, position: Array) -> Drawing | None:
        """A token a row; None on a rank that only computes its share of the logits."""
        if self._sampler.takes_greatest(slot):
            found = self._forward.greatest(hidden)
            return self._sampler.take(*found) if self._seat.answers else None
        logits = self._forward.logits(hidden)
        return self._sampler.sample(logits, slot, position) if self._seat.answers else None

    def _told(self, tokens: Tensor | None, count: int) -> Tensor:
        """What the rank that samples drew, on all that share its layers."""
        if tokens is None:
            tokens = self._device.empty(count, dtype=torch.int64)
        return tokens if self._seat.tensor_size == 1 else self._mesh.broadcast(tokens)

    def _score_prompts(
        self, layout: Layout, hidden: Tensor
    ) -> dict[int, list[Callable[[], list[TokenLogprobs]]]]:
        """Log probabilities of the prompt tokens that the spans name, by slot, to be read."""
        scores: dict[int, list[Callable[[], list[TokenLogprobs]]]] = {}
        for span in layout.prompts:
            entries = scores[span.slot] = []
            place = torch.arange(span.num_tokens, device=hidden.device) + span.position
            tokens = self._slots.ids[span.slot, place].long()
            most = np.full(span.num_tokens, self._columns.prompt_logprobs[span.slot])
            for first in range(0, span.num_tokens, self._piece):
                piece = slice(first, min(first + self._piece, span.num_tokens))
                self._progress.at("scoring a prompt")
                logits = self._forward.logits(hidden[piece])
                if self._seat.answers:
                    logprobs = ops.log_softmax(logits)
                    entries.append(score(logprobs, tokens[piece], most[piece], self._device))
            hidden = hidden[span.num_tokens :]
        return scores


def _gathered(pieces: Sequence[_Piece]) -> _Drawn:
    """What was drawn in all pieces: waits for the device."""
    made = _Drawn([], {}, {}, {})
    for first, slot, read in pieces:
        drawn = read()
        made.ids.extend(drawn.ids)
        made.logprobs.update((first + row, entry) for row, entry in drawn.logprobs.items())
        made.candidates.update((int(slot[row]), found) for row, found in drawn.candidates.items())
        made.failed.update((int(slot[row]), why) for row, why in drawn.failed.items())
    return made


def _by_row(
    entries: dict[int, TokenLogprobs], num_rows: int
) -> tuple[tuple[TokenLogprobs, ...], ...] | None:
    """One tuple a sampled row, empty where it did not ask; None where no row did."""
    if not entries:
        return None
    return tuple((entries[row],) if row in entries else () for row in range(num_rows))
