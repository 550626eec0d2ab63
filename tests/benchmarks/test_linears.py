"""The benchmark of linears: its shares, by hand."""

from __future__ import annotations

import importlib


def test_a_share_is_of_the_best_that_any_probe_found() -> None:
    limits = importlib.import_module("linears").Limits()
    for bytes_per_s, flop_per_s in ((40e9, 500e9), (80e9, 400e9), (60e9, 450e9)):
        limits.probed(bytes_per_s, flop_per_s)
    assert (limits.read_gb_s, limits.multiply_gflop_s) == (80, 500)
    assert limits.share({"gb_s": 60.0, "gflop_s": 50.0}) == 0.75
    assert limits.share({"gb_s": 4.0, "gflop_s": 450.0}) == 0.9
