"""What has ended is in no cycle: it is free at once, without Python's search for garbage, which a
server makes seldom.
"""

from __future__ import annotations

import gc
from collections import Counter

from shoal.engine.features.beams import BeamSearch
from shoal.engine.request import Request
from shoal.engine.sequence import Family, Sequence

from .test_books import run_schedule

KINDS = (Sequence, Family, BeamSearch, Request)


def test_of_random_schedules_nothing_is_left() -> None:
    gc.collect()
    gc.freeze()  # what was there before is not counted
    gc.disable()
    try:
        for seed in range(60):
            run_schedule(seed)
        left = Counter(type(it) for it in gc.get_objects())
    finally:
        gc.enable()
        gc.unfreeze()
    assert {kind.__name__: left[kind] for kind in KINDS if left[kind]} == {}
