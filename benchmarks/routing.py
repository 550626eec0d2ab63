"""Multi-turn chats on a fleet: the gateway's choice of a replica against power of two choices.

`python benchmarks/routing.py [--json FILE]`

Schedulers, KV books, prefix news, backlogs and the choice are shoal's own; a step takes a time that
is computed, and the clock is virtual, so that a run is the same everywhere. Power of two choices is
Ray Serve's default: of two replicas drawn at random the one with fewer requests under way, here
with counts that are always true. The time of a choice is measured by the real clock.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

from shoal.cluster.backlog import Backlog
from shoal.cluster.chooser import Chooser
from shoal.cluster.prefixes import PrefixIndex, prompt_keys
from shoal.cluster.standing import Standing, best
from shoal.cluster.wire import BEAT_S
from shoal.engine.config import EngineConfig
from shoal.engine.core.scheduler import Scheduler
from shoal.engine.executor import Capacity
from shoal.engine.plan import CacheSpec, Plan, Result
from shoal.engine.request import Load, Request, SamplingParams, Update

BLOCK = 16
VOCAB = 32_000
STEP_S, TOKEN_S = 0.008, 0.0001
"""A step's time: so much, and so much a token: 10,000 prompt tokens a second, no GPU assumed."""


@dataclass(frozen=True, kw_only=True)
class Trace:
    """Sessions that begin at random; each turn sends the whole conversation so far."""

    replicas: int = 4
    cache_tokens: int = 60_000
    sessions: int = 500
    sessions_per_s: float = 3.2
    systems: int = 8
    system_tokens: int = 400
    turns: tuple[int, int] = (3, 8)
    question: tuple[int, int] = (20, 250)
    answer: tuple[int, int] = (30, 160)
    think_s: float = 4.0
    seed: int = 1


@dataclass
class Session:
    name: str
    tokens: list[int]
    turns: int


@dataclass
class Replica:
    """A scheduler, and what it has told."""

    name: str
    scheduler: Scheduler
    under_way: int = 0
    plan: Plan | None = None
    num_taken: dict[int, int] = field(default_factory=dict)
    work: int = 0


@dataclass
class Gateway:
    """What one gateway knows."""

    number: int
    index: PrefixIndex
    backlogs: dict[str, Backlog]
    live: dict[str, int]
    others: dict[str, int]
    last_used: dict[str, int]


class Fleet:
    """One run. `policy`: "prefix", "prefix and session" or "power of two"."""

    def __init__(self, trace: Trace, policy: str, gateways: int) -> None:
        self.trace, self.policy = trace, policy
        self.draw = Random(trace.seed)
        self.luck = Random(trace.seed + 1)
        config = EngineConfig(model="none", max_num_seqs=64)
        capacity = Capacity(
            groups=(CacheSpec(1, 1, None),),
            num_blocks=(trace.cache_tokens // BLOCK,),
            block_size=BLOCK,
            max_model_len=16_384,
            step_tokens=512,
            vocab_size=VOCAB,
            eos_token_ids=frozenset(),
            dtype="none",
            device="none",
            digest="none",
        )
        names = [f"replica-{number}" for number in range(trace.replicas)]
        self.replicas = {name: Replica(name, Scheduler(config, capacity)) for name in names}
        self.gateways = [
            Gateway(
                number,
                PrefixIndex(),
                {name: Backlog(Load()) for name in names},
                dict.fromkeys(names, 0),
                dict.fromkeys(names, 0),
                dict.fromkeys(names, 0),
            )
            for number in range(gateways)
        ]
        for replica in self.replicas.values():
            replica.scheduler.kv.holdings.watch()
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.count = itertools.count()
        self.now = 0.0
        self.open: dict[str, Any] = {}
        self.first_token_s: list[float] = []
        self.predicted = self.left = 0

    def run(self) -> dict[str, Any]:
        trace = self.trace
        systems = [self._words(trace.system_tokens) for _ in range(trace.systems)]
        at = 0.0
        for number in range(trace.sessions):
            at += self.draw.expovariate(trace.sessions_per_s)
            words, turns = self.draw.choice(systems), self.draw.randint(*trace.turns)
            session = Session(f"session-{number}", [*words], turns)
            self.left += turns
            self._at(at, lambda session=session: self._ask(session))
        self._at(BEAT_S, self._beat)
        while self.left:
            self.now, _, happen = heapq.heappop(self.events)
            happen()
        return self._figures()

    def _figures(self) -> dict[str, Any]:
        counters = [replica.scheduler.counters for replica in self.replicas.values()]
        queries = sum(c.prefix_queries for c in counters)
        hits = sum(c.prefix_hits for c in counters)
        work = [c.prompt_tokens + c.generation_tokens for c in counters]
        cuts = statistics.quantiles(self.first_token_s, n=100)
        return {
            "policy": self.policy,
            "gateways": len(self.gateways),
            "requests": len(self.first_token_s),
            "hit_rate": round(hits / queries, 4),
            "predicted_rate": round(self.predicted / queries, 4),
            "prompt_tokens_computed": sum(c.prompt_tokens for c in counters),
            "work_max_over_mean": round(max(work) / statistics.mean(work), 3),
            "ttft_p50_ms": round(1000 * cuts[49], 1),
            "ttft_p90_ms": round(1000 * cuts[89], 1),
            "ttft_p99_ms": round(1000 * cuts[98], 1),
            "seconds": round(self.now, 1),
        }

    def _words(self, num: int) -> list[int]:
        return [self.draw.randrange(VOCAB) for _ in range(num)]

    def _at(self, when: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self.events, (when, next(self.count), happen))

    def _ask(self, session: Session) -> None:
        session.turns -= 1
        session.tokens += self._words(self.draw.randint(*self.trace.question))
        prompt = tuple(session.tokens)
        request = Request(
            id=f"{session.name}/{session.turns}",
            prompt=prompt,
            params=SamplingParams(max_tokens=self.draw.randint(*self.trace.answer), seed=0),
            keys=prompt_keys(prompt, BLOCK),
            session=session.name if "session" in self.policy else "",
        )
        gateway = self.luck.choice(self.gateways)
        cached = gateway.index.cached(request, BLOCK, self.replicas)
        name = self._choose(gateway, request, cached)
        replica = self.replicas[name]
        self.predicted += cached[name]
        left = len(prompt) - cached[name]
        number = gateway.backlogs[name].send(left, 1)
        replica.num_taken[gateway.number] = replica.num_taken.get(gateway.number, 0) + 1
        gateway.live[name] += 1
        gateway.last_used[name] = next(self.count)
        replica.under_way += 1
        self.open[request.id] = [session, gateway, number, left, self.now]
        replica.scheduler.add(request)
        self._step(replica)

    def _choose(self, gateway: Gateway, request: Request, cached: dict[str, int]) -> str:
        if self.policy == "power of two":
            two = self.luck.sample(list(self.replicas.values()), 2)
            return min(two, key=lambda replica: replica.under_way).name
        standings = [
            Standing(
                name,
                cached[name],
                gateway.backlogs[name].tokens,
                gateway.others[name] + gateway.live[name],
                None,
                gateway.last_used[name],
            )
            for name in self.replicas
        ]
        return best(standings, len(request.prompt), request.session).replica

    def _step(self, replica: Replica) -> None:
        """Begin a step, if none is under way and there is work."""
        if replica.plan is None and (plan := replica.scheduler.schedule()):
            replica.plan = plan
            num = sum(row.num_tokens for row in plan.rows)
            self._at(self.now + STEP_S + TOKEN_S * num, lambda: self._commit(replica))

    def _commit(self, replica: Replica) -> None:
        plan, replica.plan = replica.plan, None
        assert plan is not None
        tokens = tuple((self.luck.randrange(VOCAB),) for row in plan.rows if row.sample)
        updates = replica.scheduler.commit(Result(step=plan.step, tokens=tokens))
        if any(u.finish is not None or u.num_cached is not None for u in updates):
            self._tell(replica)
        for update in updates:
            self._take(replica, update)
        self._step(replica)

    def _take(self, replica: Replica, update: Update) -> None:
        session, gateway, number, left, since = self.open[update.id]
        session.tokens += update.tokens
        if update.num_cached is not None:
            self.first_token_s.append(self.now - since)
            gateway.backlogs[replica.name].begun(number, left)
        if update.finish is not None:
            del self.open[update.id]
            replica.under_way -= 1
            gateway.live[replica.name] -= 1
            self.left -= 1
            if session.turns:
                think_s = self.luck.expovariate(1 / self.trace.think_s)
                self._at(self.now + think_s, lambda: self._ask(session))

    def _tell(self, replica: Replica) -> None:
        change = replica.scheduler.kv.holdings.changes()
        for gateway in self.gateways:
            gateway.index.update(replica.name, *change)

    def _beat(self) -> None:
        for replica in self.replicas.values():
            self._tell(replica)
            load = Load(tokens=replica.scheduler.num_behind)
            for gateway in self.gateways:
                taken = replica.num_taken.get(gateway.number, 0)
                gateway.backlogs[replica.name].told(load, taken)
                gateway.others[replica.name] = replica.under_way - gateway.live[replica.name]
        self._at(self.now + BEAT_S, self._beat)


def choice_times(replicas: int, keys: int, prompt: int) -> dict[str, Any]:
    """Microseconds of a choice and of hashing, by the real clock."""
    draw = Random(0)
    chooser = Chooser()
    card = SimpleNamespace(block_size=BLOCK, window=0)
    links = []
    tokens = tuple(draw.randrange(VOCAB) for _ in range(prompt))
    hashed = prompt_keys(tokens, BLOCK)
    told = hashed[7::8]
    for number in range(replicas):
        name = f"replica-{number}"
        own = [draw.randbytes(16) for _ in range(keys // replicas)]
        chooser.prefixes.update(name, [*own, *told[: number % (len(told) + 1)]], ())
        backlog = Backlog(Load(tokens=draw.randrange(1000), room=100))

        def standing(
            cached: int = 0, last_used: int = 0, name: str = name, backlog: Backlog = backlog
        ) -> Standing:
            return Standing(name, cached, backlog.tokens, 3, backlog.room, last_used)

        links.append(SimpleNamespace(replica=name, card=card, standing=standing))
    request = Request(id="r", prompt=tokens, keys=hashed, session="somebody")
    plain = Request(id="r", prompt=tokens, keys=hashed)
    return {
        "replicas": replicas,
        "keys": chooser.prefixes.num_keys,
        "prompt_tokens": prompt,
        "choice_us": _median_us(lambda: chooser.choose(links, plain)),
        "choice_with_session_us": _median_us(lambda: chooser.choose(links, request)),
        "hashing_us": _median_us(lambda: prompt_keys(tokens, BLOCK)),
    }


def _median_us(call: Callable[[], object], times: int = 300) -> float:
    taken = []
    for _ in range(times):
        begin = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begin)
    return round(1e6 * statistics.median(taken), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--sessions", type=int, default=Trace.sessions)
    asked = parser.parse_args()
    trace = Trace(sessions=asked.sessions)
    runs = []
    for policy, gateways in (
        ("power of two", 1),
        ("prefix", 1),
        ("prefix", 3),
        ("prefix and session", 1),
        ("prefix and session", 3),
    ):
        runs.append(Fleet(trace, policy, gateways).run())
        print(json.dumps(runs[-1]), flush=True)
    times = [choice_times(replicas, 100_000, 4096) for replicas in (4, 64)]
    for one in times:
        print(json.dumps(one))
    if asked.json:
        command = " ".join(["python", "benchmarks/routing.py", *sys.argv[1:]])
        found = {"command": command, "trace": vars(trace), "load_average": os.getloadavg()[0]}
        asked.json.write_text(json.dumps(found | {"runs": runs, "choice": times}, indent=2) + "\n")


if __name__ == "__main__":
    main()
