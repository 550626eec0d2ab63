"""Blocks by themselves: who goes first, what is forgotten."""

from __future__ import annotations

import pytest
from shoal.engine.core.blocks import NULL, Blocks


def test_takes_what_holds_nothing_known_first_then_the_oldest() -> None:
    blocks = Blocks(6)
    taken = blocks.take(5)
    assert sorted(taken) == [1, 2, 3, 4, 5], "the null block is never handed out"
    blocks.publish(taken[0], b"first")
    blocks.publish(taken[1], b"second")
    blocks.give([taken[1]])
    blocks.give([taken[0]])
    blocks.give([taken[4]])
    assert blocks.take(1) == [taken[4]]
    assert blocks.take(1) == [taken[1]]
    assert blocks.find(b"second") is None, "a block taken anew has forgotten its content"
    assert blocks.find(b"first") == taken[0]


def test_a_shared_block_is_free_when_its_last_holder_goes() -> None:
    blocks = Blocks(3)
    (block,) = blocks.take(1)
    blocks.share([block, NULL])
    blocks.give([block, NULL])
    assert blocks.num_free == 1
    blocks.give([block])
    assert blocks.num_free == 2
    with pytest.raises(AssertionError):
        blocks.give([block])


def test_a_free_block_can_be_shared_back_to_life() -> None:
    blocks = Blocks(3)
    (block,) = blocks.take(1)
    blocks.publish(block, b"key")
    blocks.give([block])
    blocks.share([block])
    assert blocks.take(1) != [block]
    assert blocks.find(b"key") == block


def test_equal_content_is_published_once() -> None:
    blocks = Blocks(4)
    one, two = blocks.take(2)
    blocks.publish(one, b"key")
    blocks.publish(two, b"key")
    assert blocks.find(b"key") == one
    blocks.give([two])
    assert blocks.find(b"key") == one
