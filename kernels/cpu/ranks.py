"""The ranks of a node, as a sum over them that is part of a recorded step knows them."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Ranks(NamedTuple):
    """Rank `rank` of as many as `pipes` has, which map one `slab`.

    slab [n] uint8, zeros at first, each half of a rank's part for a piece of what is summed; pipes
    [ranks] int32: for each other rank a file that is hung up when that rank is gone, -1 for itself.
    """

    rank: int
    slab: Tensor
    pipes: Tensor
