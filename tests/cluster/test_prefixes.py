"""The index of prefixes: what replicas told, through changes, losses and returns."""

from __future__ import annotations

import random

from shoal.cluster import wire
from shoal.cluster.news import MAX_UNREAD, News
from shoal.cluster.prefixes import PrefixIndex, prompt_keys, told_keys
from shoal.engine.holdings import Holdings
from shoal.engine.request import Request, SamplingParams


class Reader:
    """A gateway that reads when it is told to."""

    def __init__(self, name: str, index: PrefixIndex) -> None:
        self.name, self.index, self.frames = name, index, []
        self.stuck = False

    @property
    def unread(self) -> int:
        return MAX_UNREAD + 1 if self.stuck else 0

    def send(self, frame: bytes) -> None:
        message = wire.from_replica(frame[4:])
        assert isinstance(message, wire.Cached)
        if message.anew:
            self.index.forget(self.name)
        self.index.update(self.name, wire.keys_of(message.gained), wire.keys_of(message.lost))


def key(number: int) -> bytes:
    return number.to_bytes(16, "big")


def test_it_follows_replicas_through_changes_stalls_and_returns() -> None:
    draw = random.Random(5)
    names = [f"r{number}" for number in range(5)]
    caches = {name: Holdings(8) for name in names}
    index = PrefixIndex()
    news = {name: News(cache) for name, cache in caches.items()}
    readers: dict[str, Reader] = {}
    chain = [key(number) for number in range(12)]
    hits = 0
    for _ in range(4000):
        name = draw.choice(names)
        cache, number = caches[name], draw.randrange(12)
        what = draw.random()
        if what < 0.5:
            cache.gain(key(number))
        elif what < 0.7:
            cache.lose(key(number))
        elif what < 0.75 and name in readers:
            news[name].leave(readers.pop(name))
            index.forget(name)
        elif what < 0.8 and name not in readers:
            readers[name] = Reader(name, index)
            news[name].join(readers[name])
        elif what < 0.85 and name in readers:
            readers[name].stuck = not readers[name].stuck
        news[name].tell()
        true = {n for n, r in readers.items() if not r.stuck and not news[n]._behind[r]}
        held = index.lengths(chain, [*names, "stranger"])
        for n in true:
            front = next((i for i, k in enumerate(chain) if k not in caches[n].keys), 12)
            assert held[n] == front
            hits += front > 0
        assert all(held[n] == 0 for n in names if n not in readers) and held["stranger"] == 0
    assert hits > 1000
    for name in readers:
        index.forget(name)
    assert not index.num_keys


def test_a_reader_that_was_behind_is_told_everything_anew() -> None:
    cache, index = Holdings(8), PrefixIndex()
    news, reader = News(cache), Reader("r", index)
    news.join(reader)
    reader.stuck = True
    cache.gain(key(1))
    news.tell()
    assert index.num_keys == 0
    cache.gain(key(2))
    news.tell()
    reader.stuck = False
    news.tell()
    assert index.lengths([key(1), key(2)], ["r"]) == {"r": 2}


def test_much_news_is_parted() -> None:
    cache, index = Holdings(8), PrefixIndex()
    for number in range(10_000):
        cache.gain(key(number))
    news, reader = News(cache), Reader("r", index)
    news.join(reader)
    assert index.num_keys == 10_000
    for number in range(9_999):
        cache.lose(key(number))
    news.tell()
    assert index.num_keys == 1


def test_only_what_would_be_matched_is_looked_up() -> None:
    prompt = tuple(range(256))
    asked = Request(id="a", prompt=prompt, keys=prompt_keys(prompt, 16))
    assert told_keys(asked, 16) == asked.keys[7:8], "the last token is always computed"
    longer = Request(id="a", prompt=(*prompt, 1), keys=asked.keys)
    assert told_keys(longer, 16) == asked.keys[7::8]
    resumed = Request(id="a", prompt=prompt, keys=asked.keys, emitted=(1, 2))
    assert told_keys(resumed, 16) == asked.keys[7::8]
    scored = Request(
        id="a", prompt=prompt, keys=asked.keys, params=SamplingParams(prompt_logprobs=1)
    )
    assert told_keys(scored, 16) == () == told_keys(asked, 0)
    index = PrefixIndex()
    index.update("r", asked.keys, ())
    assert index.cached(longer, 16, ["r", "s"]) == {"r": 256, "s": 0}
    salted = Request(id="a", prompt=longer.prompt, keys=prompt_keys(longer.prompt, 16, salt="s"))
    assert index.cached(salted, 16, ["r"]) == {"r": 0}


def test_with_a_window_the_last_row_that_is_long_enough_counts() -> None:
    index = PrefixIndex()
    held = {"all": range(6), "late": (3, 4, 5), "short": (4, 5), "gap": (0, 2, 3, 5), "none": ()}
    for name, numbers in held.items():
        index.update(name, [key(number) for number in numbers], ())
    keys = [key(number) for number in range(6)]
    whole = {"all": 6, "late": 0, "short": 0, "gap": 1, "none": 0}
    assert index.lengths(keys, held) == whole
    assert index.lengths(keys, held, 3) == whole | {"late": 6}
    assert index.lengths(keys, held, 2) == whole | {"late": 6, "short": 6, "gap": 4}
    assert index.lengths(keys[:1], held, 3) == {name: int(0 in n) for name, n in held.items()}
    draw = random.Random(2)
    for _ in range(500):
        names = {str(n): {i for i in range(12) if draw.random() < 0.7} for n in range(4)}
        index, row = PrefixIndex(), draw.choice((0, 1, 2, 5))
        for name, numbers in names.items():
            index.update(name, map(key, numbers), ())
        for name, num in index.lengths(map(key, range(12)), names, row).items():
            fits = (
                n for n in range(13) if {*range(max(0, n - row) if row else 0, n)} <= names[name]
            )
            assert num == max(fits)
