"""A gateway's streams over replicas that are scripted: each token follows from the state."""

import asyncio
from dataclasses import dataclass, field, replace

from shoal.cluster.failover import Failover
from shoal.cluster.formats import usage
from shoal.cluster.link import LinkLost, Load, anywhere
from shoal.cluster.metrics import Metrics
from shoal.cluster.state import new_state
from shoal.cluster.stream import Generation
from shoal.engine.errors import EngineLost
from shoal.engine.request import FinishReason, Request, SamplingParams, TokenLogprobs, Update

MODEL = "scripted"


@dataclass(eq=False)
class Replica:
    """A replica whose tokens follow from prompt, seed, sibling and position; `step` gives one."""

    card: object
    words: list
    fleet: list
    replica: str
    index: int = 0
    leaving: bool = False
    has_room: bool = True
    refusal: object = None
    load: Load = field(default_factory=Load)
    live: dict = field(default_factory=dict)
    seen: list = field(default_factory=list)
    aborted: list = field(default_factory=list)

    def submit(self, request, on_update):
        self.seen.append(request)
        if self.refusal is not None:
            asyncio.get_running_loop().call_soon(on_update, self.refusal)
            return
        for sibling in range(request.sibling, request.sibling + request.params.n):
            self.live[request.id, sibling] = (request, on_update, list(request.emitted))

    def abort(self, request_id, sibling=None, reason=FinishReason.ABORT):
        self.aborted.append((request_id, sibling))
        for key in [k for k in self.live if k[0] == request_id and sibling in (None, k[1])]:
            del self.live[key]

    def cached(self, request):
        return 0

    def step(self):
        for key, (request, on_update, emitted) in list(self.live.items()):
            update = self.next(request, key[1], emitted)
            if update.finish is not None:
                self.live.pop(key, None)
            on_update(update)

    def next(self, request, sibling, emitted):
        place = len(emitted)
        draw = sum(request.prompt) * 31 + request.params.seed * 17 + sibling * 7 + place * 3
        token = self.words[(draw + sum(emitted[-2:])) % len(self.words)]
        first = emitted == list(request.emitted)
        emitted.append(token)
        params = request.params
        return Update(
            request.id,
            sibling,
            (token,),
            logprobs=None if params.logprobs is None else (TokenLogprobs(-0.01 * token, 1),),
            prompt_logprobs=(None, TokenLogprobs(-1.0, 2)) * bool(params.prompt_logprobs)
            if first
            else None,
            num_cached=(3 if not request.emitted else 40) if first else None,
            finish=FinishReason.LENGTH if len(emitted) >= params.max_tokens else None,
            epoch=request.epoch,
        )

    def lose(self, died=True, stuck=False):
        """Its link ends, and every stream is told once."""
        self.fleet.remove(self)
        streams = {id(on_update): on_update for _, on_update, _ in self.live.values()}
        lost, self.live = self.live, {}
        for on_update in streams.values():
            told = f"replica {self.replica} is lost"
            on_update(LinkLost(told, died and not self.leaving, stuck and not self.leaving))
        return lost


@dataclass
class Fleet:
    """The router: the replica with the fewest sequences."""

    replicas: list

    def choose(self, model, request, fit=anywhere):
        able = [r for r in self.replicas if not r.leaving and fit(r)]
        if not able:
            raise EngineLost("no replica")
        return min(able, key=lambda replica: len(replica.live))

    def links(self):
        return list(self.replicas)


class Scene:
    """A gateway's streams over a fleet."""

    def __init__(self, tokenizer, card, num=2, **settings):
        self.tokenizer, self.card = tokenizer, card
        self.words = [tokenizer.encode(c)[0] for c in "abcdefghijklmnop"]
        self.fleet = Fleet([])
        for _ in range(num):
            self.add()
        settings = {"timeout_s": 60, "grace_s": 0, "max_failovers": 8} | settings
        self.metrics = Metrics()
        self.failover = Failover(self.fleet, self.metrics, **settings)
        self.errors, self.deltas, self.generations = [], {}, []

    def add(self, digest=None, version=""):
        card = replace(self.card, digest=digest or self.card.digest, version=version)
        self.count = getattr(self, "count", 0) + 1
        made = Replica(card, self.words, self.fleet.replicas, f"r{self.count}")
        self.fleet.replicas.append(made)
        return made

    def begin(self, id="a", prompt=(5, 6), num_answers=None, **fields):
        params = SamplingParams(**{"seed": 7, "max_tokens": 20, "temperature": 1, **fields})
        generation = Generation(
            new_state(Request(id=id, prompt=prompt, params=params), MODEL, num_answers=num_answers),
            self.tokenizer,
            on_delta=lambda _, choice, delta: self.deltas.setdefault(choice, []).append(delta),
            on_error=self.errors.append,
        )
        self.failover.begin(generation)
        self.generations.append(generation)
        return generation

    def step(self, times=1):
        for _ in range(times):
            for replica in tuple(self.fleet.replicas):
                replica.step()

    async def finish(self):
        """Step until every stream has ended."""
        async with asyncio.timeout(60):
            while not all(generation.ended for generation in self.generations):
                self.step()
                await asyncio.sleep(0.001)

    def told(self):
        """Everything that clients were told, chunk by chunk."""
        return [
            [self.deltas.get(choice) for choice in generation.choices]
            for generation in self.generations
        ], [usage([g]) for g in self.generations]

    def value(self, family, cause=None):
        return sum(
            cell[0]
            for (name, labels), cell in self.metrics.figures.items()
            if name == family.name and cause in (None, labels[-1])
        )


async def settled():
    """Once what is due has run."""
    for _ in range(5):
        await asyncio.sleep(0)


async def until(condition):
    """Once `condition()` holds: what a timer does comes when the machine has time for it."""
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.001)
