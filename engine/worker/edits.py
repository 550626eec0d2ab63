"""What one row wants done to its logits beside penalties, as tables that the mask op reads."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from ..request import SamplingParams
from .device import Device
from .phrases import Phrases


class Amounts(NamedTuple):
    """`amounts` [E] float32, to be added to the logits of `ids` [E] int32, which rise; -inf bans.

    On the device.
    """

    ids: Tensor
    amounts: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Edits:
    """One row's.

    `allowed` [W] int32 on the device has a bit for each token, None where all are allowed. `added`
    has the bias, and -inf for bad words of one token; `phrases` are the longer ones. `stops` may
    not be sampled before `min_tokens` are out: `early` are the amounts until then, `late` those
    from then on.
    """

    allowed: Tensor | None
    added: Mapping[int, float]
    phrases: Phrases | None
    stops: frozenset[int]
    min_tokens: int
    early: Amounts
    late: Amounts
    processors: tuple[Callable[[list[int], Any], Any], ...]

    def amounts(self, num_emitted: int, completing: Collection[int], device: Device) -> Amounts:
        """What is added where so many tokens are out, and these would complete a phrase."""
        is_early = num_emitted < self.min_tokens
        if not completing:
            return self.early if is_early else self.late
        bans = self.stops.union(completing) if is_early else completing
        return _upload(self.added, bans, device)


def edits(
    params: SamplingParams, vocab_size: int, eos: Iterable[int], device: Device
) -> Edits | None:
    """The edits that these parameters ask for, all ids inside the vocabulary; None for none."""
    stops = frozenset(eos).union(params.stop_token_ids or ()) if params.min_tokens else frozenset()
    stops = frozenset(token for token in stops if 0 <= token < vocab_size)
    words, allowed = params.bad_words_ids, params.allowed_token_ids
    if not (stops or words or params.logit_bias or allowed or params.logits_processors):
        return None
    phrases = [word for word in words if len(word) > 1]
    added = dict(params.logit_bias or {})
    added |= {word[0]: -np.inf for word in words if len(word) == 1}
    late = _upload(added, (), device)
    return Edits(
        allowed=device.upload(_bits(allowed, vocab_size)) if allowed else None,
        added=added,
        phrases=Phrases(phrases) if phrases else None,
        stops=stops,
        min_tokens=params.min_tokens,
        early=_upload(added, stops, device) if stops else late,
        late=late,
        processors=tuple(params.logits_processors or ()),
    )


def _upload(added: Mapping[int, float], bans: Iterable[int], device: Device) -> Amounts:
    whole = {**added, **dict.fromkeys(bans, -np.inf)}
    ids = sorted(whole)
    amounts = np.array([whole[token] for token in ids], dtype=np.float32)
    return Amounts(device.upload(np.array(ids, dtype=np.int32)), device.upload(amounts))


def _bits(ids: Iterable[int], vocab_size: int) -> np.ndarray[Any, Any]:
    """A bit for each token of the vocabulary, in words of 32: [W] int32."""
    chosen = np.zeros(-(-vocab_size // 32) * 32, dtype=bool)
    chosen[list(ids)] = True
    return np.packbits(chosen, bitorder="little").view("<i4").astype(np.int32, copy=False)
