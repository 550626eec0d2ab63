"""Counts of several gateways and replicas: one answer, whoever is asked, that never goes back."""

from __future__ import annotations

import asyncio
import itertools
import random
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from shoal.cluster import catalog
from shoal.cluster.link import Load
from shoal.cluster.pool import Pool
from shoal.cluster.tally import Figures, cell, merge, observe, total


@dataclass
class Router:
    """Replicas by their id; all are of the model m and have the number 0."""

    loads: dict[str, Load] = field(default_factory=dict)

    def links(self) -> list[Any]:
        card = SimpleNamespace(names=("m",))
        return [
            SimpleNamespace(replica=id, index=0, card=card, load=load)
            for id, load in self.loads.items()
        ]


def pool(name: str, **loads: Load) -> Pool:
    return Pool(Router(loads), name)  # type: ignore[arg-type]


def load(hits: float) -> Load:
    return Load(counters={"prefix_hits": hits, "step_tokens_8": hits, "computed_tokens": 5 * hits})


def totals(pool: Pool) -> Figures:
    return asyncio.run(pool.totals())


def hits(pool: Pool) -> float:
    return totals(pool)[catalog.HITS.name, ("m", "0")][0]


def http(pool: Pool) -> float:
    return totals(pool)[catalog.HTTP.name, ("/", "GET", "200")][0]


def test_a_value_falls_into_one_bucket_and_the_sum() -> None:
    figures: Figures = {}
    of = cell(figures, catalog.ANSWERS, "m", "0")
    for value in (1, 2, 3, 5, 99):
        observe(of, catalog.ANSWERS.buckets, value)
    assert of == [1, 1, 2, 0, 0, 1, 110]


def test_merging_is_blind_to_order_and_repetition() -> None:
    rng = random.Random(0)
    record: Figures = {}
    records = []
    for _ in range(20):
        observe(cell(record, catalog.GAP, "m", "0"), catalog.GAP.buckets, rng.random())
        cell(record, catalog.PROMPT, "m", str(rng.randrange(3)))[0] += 1
        records.append({key: [*values] for key, values in record.items()})
    for _ in range(5):
        rng.shuffle(records)
        known: Figures = {}
        for told in (*records, *records[:7]):
            merge(known, told)
        assert known == record


def test_what_two_gateways_counted_is_added_up_once() -> None:
    a, b = pool("a"), pool("b")
    for counted in (a, a, b):
        counted.metrics.answered("/", "GET", 200, 0.2)
    for _ in range(3):
        a.learn(b.record())
        b.learn(a.record())
    assert http(a) == http(b) == 3
    key = (catalog.HTTP_SECONDS.name, ("/", "GET"))
    assert totals(a)[key][-1] == pytest.approx(0.6)


def test_a_replica_that_both_see_counts_once_and_its_successor_adds_to_it() -> None:
    a, b = pool("a", r1=load(7)), pool("b", r1=load(9))
    a.learn(b.record())
    assert hits(a) == hits(b) == 9
    a.router.loads = {"r2": load(1)}  # type: ignore[attr-defined]
    assert hits(a) == 10
    assert totals(a)[catalog.STEP.name, ("m", "0")][-1] == 50
    b.learn(a.record())
    assert hits(b) == 10


def test_a_gateway_that_has_gone_is_not_forgotten() -> None:
    a, b, c = pool("a"), pool("b"), pool("c")
    b.metrics.answered("/", "GET", 200, 0.1)
    a.learn(b.record())
    c.learn(a.record())
    del b
    assert http(a) == http(c) == 1


def test_no_order_of_talk_makes_a_sum_go_back() -> None:
    rng = random.Random(1)
    pools = {name: pool(name) for name in "abc"}
    seen = dict.fromkeys(pools, 0.0)
    for step in itertools.count():
        name, other = rng.choice("abc"), rng.choice("abc")
        pools[name].metrics.answered("/", "GET", 200, 0.1)
        pools[other].learn(pools[name].record())
        for at, known in pools.items():
            now = sum(v[0] for (n, _), v in totals(known).items() if n == catalog.HTTP.name)
            assert now >= seen[at]
            seen[at] = now
        if step == 60:
            break
    for name, other in itertools.permutations("abc", 2):
        pools[name].learn(pools[other].record())
    assert {http(known) for known in pools.values()} == {61}


def test_garbage_is_refused_and_harms_nothing() -> None:
    a = pool("a")
    a.metrics.answered("/", "GET", 200, 0.1)
    with pytest.raises(msgspec.MsgspecError):
        a.learn(b"\xc1")
    assert http(a) == 1


def test_the_order_of_sources_changes_no_bit_of_a_sum() -> None:
    rng = random.Random(2)
    sources: list[Figures] = [{("x", ()): [rng.random() * 10**e]} for e in range(-9, 9)]
    sums = set()
    for _ in range(50):
        rng.shuffle(sources)
        sums.add(total(sources)["x", ()][0])
    assert len(sums) == 1


def test_the_answers_of_one_replica_number_are_those_of_its_model_alone() -> None:
    assert total([{("x", ("m", "0")): [1.0]}, {("x", ("n", "0")): [2.0]}]) == {
        ("x", ("m", "0")): [1.0],
        ("x", ("n", "0")): [2.0],
    }
