"""Prefix hits across cache groups, and what a hash collision may not do."""

from __future__ import annotations

from shoal.engine.core.kv import KVManager
from shoal.engine.request import Request, SamplingParams
from shoal.engine.sequence import Sequence

from .fake import capacity


def sequence(tokens: tuple[int, ...], **fields: str) -> Sequence:
    request = Request(id="r", prompt=tokens, params=SamplingParams(seed=0), **fields)  # type: ignore[arg-type]
    return Sequence(
        request=request,
        sibling=0,
        rank=(0, 0, 0),
        tokens=list(tokens),
        num_prompt=len(tokens),
        limit=99,
    )


def store(kv: KVManager, tokens: tuple[int, ...], **fields: str) -> None:
    """Compute a sequence whole and let it go: its blocks stay findable."""
    seq = sequence(tokens, **fields)
    kv.match(seq)
    assert kv.reserve(seq, len(tokens)) is not None
    seq.written = len(tokens)
    kv.publish(seq)
    kv.release(kv.detach(seq))


def test_the_last_token_is_always_computed() -> None:
    kv = KVManager(capacity(num_blocks=50), caching=True)
    store(kv, tuple(range(16)))
    assert kv.match(sequence(tuple(range(16)))) == 12
    assert kv.match(sequence(tuple(range(17)))) == 16


def test_a_prompt_is_computed_again_until_its_log_probabilities_are_known() -> None:
    kv = KVManager(capacity(num_blocks=50), caching=True)
    store(kv, tuple(range(16)))
    scored = sequence(tuple(range(17)))
    scored.prompt_logprobs = [None, (), None, *[()] * 14]
    assert kv.match(scored) == 0
    kv.release(kv.detach(scored))
    scored.prompt_logprobs[2] = ()
    assert kv.match(scored) == 16


def test_a_window_group_needs_only_the_blocks_inside_its_window() -> None:
    kv = KVManager(capacity(num_blocks=50, windows=(None, 6)), caching=True)
    store(kv, tuple(range(24)))
    again = sequence(tuple(range(25)))
    assert kv.match(again) == 24
    assert all(again.blocks[0])
    assert again.blocks[1][:4] == [0, 0, 0, 0] and all(again.blocks[1][4:])


def test_a_hole_inside_the_window_shortens_the_hit() -> None:
    kv = KVManager(capacity(num_blocks=50, windows=(None, 6)), caching=True)
    store(kv, tuple(range(12)))
    kv.groups[1].take(kv.groups[1].num_free)
    assert kv.match(sequence(tuple(range(25)))) == 0


def test_salt_and_adapter_part_the_cache() -> None:
    kv = KVManager(capacity(num_blocks=50), caching=True)
    store(kv, tuple(range(9)), cache_salt="a")
    assert kv.match(sequence(tuple(range(9)), cache_salt="a")) == 8
    assert kv.match(sequence(tuple(range(9)))) == 0
    assert kv.match(sequence(tuple(range(9)), adapter="a")) == 0
    store(kv, tuple(range(9)), adapter="x", cache_salt="y")
    assert kv.match(sequence(tuple(range(9)), adapter="xy")) == 0


def test_keys_are_computed_once() -> None:
    kv = KVManager(capacity(num_blocks=50), caching=True)
    seq = sequence(tuple(range(30)))
    kv.match(seq)
    before = list(seq.keys)
    seq.tokens.append(7)
    kv.release(kv.detach(seq))
    kv.match(seq)
    assert all(a is b for a, b in zip(before, seq.keys, strict=False))
