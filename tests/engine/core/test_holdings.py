"""What a cache says that it holds is what it can match."""

from __future__ import annotations

import random
import threading

import pytest
from shoal.engine.core.kv import KVManager
from shoal.engine.holdings import Change, Holdings
from shoal.engine.keys import TOLD_TOKENS, chained_keys, root_key, told_every
from shoal.engine.request import Request
from shoal.engine.sequence import Sequence

from .fake import capacity

SALTS = ("", "salt")


def sequence(tokens: list[int], salt: str, number: int) -> Sequence:
    return Sequence(
        request=Request(id=str(number), prompt=tuple(tokens), cache_salt=salt),
        sibling=0,
        rank=(0, number, 0),
        tokens=tokens,
        num_prompt=len(tokens),
        limit=9999,
    )


def predicted(told: set[bytes], tokens: list[int], salt: str, size: int) -> int:
    """The tokens of a prefix that one who was told `told` expects to be cached."""
    every = told_every(size)
    keys = chained_keys(root_key(None, salt), tokens, size)[every - 1 :: every]
    num = next((i for i, key in enumerate(keys) if key not in told), len(keys))
    return num * every * size


@pytest.mark.parametrize("size", [16, 32, 48, 256])
@pytest.mark.parametrize("seed", range(4))
def test_what_is_told_is_what_can_be_matched(size: int, seed: int) -> None:
    """Through random prompts, evictions and late watchers, to the stretch of keys told."""
    draw = random.Random(f"{seed}/{size}")
    kv = KVManager(capacity(num_blocks=max(20, 3000 // size), block_size=size), caching=True)
    every = told_every(size) * size
    assert every <= max(TOLD_TOKENS, size)
    told: set[bytes] = set()
    watching = False
    texts = [[draw.randrange(9) for _ in range(draw.randrange(1, 900))] for _ in range(6)]
    running: list[Sequence] = []
    hits = 0
    for number in range(150):
        if not watching and draw.random() < 0.1:
            told, watching = kv.holdings.watch(), True
        text = draw.choice(texts)
        tokens = text[: draw.randrange(1, len(text) + 1)]
        tokens += [draw.randrange(9) for _ in range(draw.choice((0, 0, 40, 300)))]
        if draw.random() < 0.3:
            texts[draw.randrange(len(texts))] = tokens
        seq = sequence(tokens, draw.choice(SALTS), number)
        if watching:
            gained, lost = kv.holdings.changes()
            told = (told | set(gained)) - set(lost)
            assert told == kv.holdings.keys
            probe = sequence([*tokens, 1], seq.request.cache_salt, -number)
            matched = kv.match(probe)
            kv.release(kv.detach(probe))
            expected = predicted(told, tokens, seq.request.cache_salt, size)
            assert matched // every * every == expected
            hits += expected > 0
        kv.match(seq)
        while kv.reserve(seq, len(tokens)) is None:
            assert running, "one sequence fits"
            kv.release(kv.detach(running.pop(draw.randrange(len(running)))))
        seq.written = len(tokens)
        kv.publish(seq)
        running.append(seq)
        if draw.random() < 0.6:
            kv.release(kv.detach(running.pop(draw.randrange(len(running)))))
    assert hits


def test_each_key_is_told_once_and_its_last_fate_counts() -> None:
    holdings = Holdings(1)
    holdings.gain(b"before")
    assert holdings.watch() == {b"before"}
    for key in (b"a", b"a", b"b"):
        holdings.gain(key)
    holdings.lose(b"a")
    holdings.lose(b"before")
    holdings.lose(b"unknown")
    holdings.lose(b"b")
    holdings.gain(b"b")
    assert holdings.changes() == Change([b"b"], [b"a", b"before"])
    assert not holdings.changes()


def test_a_watcher_on_another_thread_misses_nothing() -> None:
    holdings, told = Holdings(1), set()
    draw = random.Random(0)
    done = threading.Event()

    def write() -> None:
        for _ in range(60_000):
            key = bytes([draw.randrange(200)])
            holdings.lose(key) if draw.random() < 0.5 else holdings.gain(key)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    told = holdings.watch()
    while not done.is_set():
        gained, lost = holdings.changes()
        told = (told | set(gained)) - set(lost)
    writer.join()
    gained, lost = holdings.changes()
    assert (told | set(gained)) - set(lost) == holdings.keys


def test_a_cache_that_is_off_tells_nothing() -> None:
    kv = KVManager(capacity(num_blocks=50, block_size=16), caching=False)
    seq = sequence(list(range(300)), "", 0)
    kv.match(seq)
    assert kv.reserve(seq, 300) is not None
    seq.written = 300
    kv.publish(seq)
    assert not kv.holdings.keys


def test_what_a_window_has_forgotten_is_not_told() -> None:
    kv = KVManager(capacity(num_blocks=50, block_size=16, windows=(32, None)), caching=True)
    seq = sequence(list(range(300)), "", 0)
    kv.match(seq)
    assert kv.reserve(seq, 300) is not None
    seq.written = 300
    kv.publish(seq)
    assert kv.holdings.keys == set(seq.keys[7::8])
    kv.release(kv.detach(seq))
    windowed, whole = kv.groups
    assert windowed.take(49 - 18) and kv.holdings.keys, "blocks that held nothing go first"
    windowed.take(2)
    assert kv.holdings.keys == {seq.keys[7]}, "of the other stretch the last block is gone"
    whole.take(49)
    assert not kv.holdings.keys


def usable(told: set[bytes], tokens: list[int], size: int, window: int) -> int:
    """As `predicted`, where layers have windows: any key after as many as the window is long."""
    width = told_every(size) * size
    row = -(-(window - 1) // width)
    keys = chained_keys(root_key(None, ""), tokens, size)[told_every(size) - 1 :: told_every(size)]
    held = [key in told for key in keys]
    fits = [n for n in range(1, len(keys) + 1) if all(held[max(0, n - row) : n])]
    return width * max(fits, default=0)


@pytest.mark.parametrize("windows", [(200, None), (300, 40), (64,), (500, 129, None)])
@pytest.mark.parametrize("seed", range(3))
def test_with_windows_hardly_more_is_told_than_can_be_matched(
    windows: tuple[int | None, ...], seed: int
) -> None:
    """A block that was held when it was computed once more goes before those that follow it."""
    draw = random.Random(f"{seed}/{windows}")
    kv = KVManager(capacity(num_blocks=220, block_size=16, windows=windows), caching=True)
    longest = max(window or 0 for window in windows)
    texts = [[draw.randrange(9) for _ in range(draw.randrange(300, 1500))] for _ in range(5)]
    running: list[Sequence] = []
    expected = matched = over = 0
    for number in range(200):
        text = draw.choice(texts)
        seq = sequence(
            text[: draw.randrange(1, len(text) + 1)] + [draw.randrange(9)] * 40, "", number
        )
        hit = kv.match(seq)
        told = usable(kv.holdings.keys, seq.tokens[:-1], 16, longest)
        over += told > hit
        expected, matched = expected + told, matched + hit
        while seq.written < len(seq.tokens):
            upto = min(len(seq.tokens), max(hit, seq.written) + 250)
            while kv.reserve(seq, upto) is None:
                kv.release(kv.detach(running.pop(draw.randrange(len(running)))))
            seq.written = upto
            kv.publish(seq)
        running.append(seq)
        if draw.random() < 0.7:
            kv.release(kv.detach(running.pop(draw.randrange(len(running)))))
    assert 0.3 * matched < expected and over <= 2
    assert all(any(g.find(key) is not None for g in kv.groups) for key in kv._stretches_of)
