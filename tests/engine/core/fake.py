"""A model without arithmetic, whose text shows any fault in the books.

Each cell of the paged cache holds a hash of the whole prefix up to its position, chained through
the cell before it as read from the cache. The next token is drawn from a hash of all cells that the
position may see. A block given away too early, a copy forgotten or a wrong table changes the text.
"""

from __future__ import annotations

from collections import deque
from hashlib import blake2b

from shoal.engine.config import EngineConfig
from shoal.engine.executor import Capacity
from shoal.engine.features.beams import search_of
from shoal.engine.plan import CacheSpec, Candidate, Plan, Result, Row, Start
from shoal.engine.request import Request, TokenLogprobs

VOCAB = 50
EOS = 0


def digest(*parts: object) -> int:
    return int.from_bytes(blake2b(repr(parts).encode(), digest_size=8).digest(), "big")


def choose(seen: int, position: int, seed: int, sibling: int) -> int:
    """The token at `position` after a prefix hashed to `seen`; one in about 40 is the end."""
    return digest(seen, position, seed, sibling) % VOCAB


def candidates(seen: int, position: int, num: int) -> tuple[Candidate, ...]:
    """What could follow: `num` different tokens, each with a score of its own."""
    found = sorted((-(digest(seen, position, t) % 99_991) / 9_999, t) for t in range(VOCAB))
    return tuple(
        Candidate(token, score, TokenLogprobs(score, rank))
        for rank, (score, token) in enumerate(reversed(found[-num:]), 1)
    )


def see(cells: list[list[int]]) -> int:
    return digest(*map(tuple, cells))


def reference(request: Request, sibling: int, windows: list[int | None], max_len: int) -> list[int]:
    """The text of one sequence, computed without any cache."""
    tokens = [*request.prompt, *request.emitted]
    most = request.params.max_tokens
    limit = max_len if most is None else min(max_len, len(request.prompt) + most)
    chain: list[int] = []
    while True:
        while len(chain) < len(tokens):
            chain.append(digest(chain[-1] if chain else "root", tokens[len(chain)]))
        if len(tokens) >= limit:
            break
        seen = see([chain[-w:] if w else chain for w in windows])
        tokens.append(choose(seen, len(tokens), request.params.seed or 0, sibling))
        if tokens[-1] == EOS and not request.params.ignore_eos:
            break
        if tokens[-1] in (request.params.stop_token_ids or ()):
            break
    return tokens[len(request.prompt) :]


def beams(request: Request, windows: list[int | None], max_len: int) -> list[list[int]]:
    """The answers of a beam search, computed without any cache."""
    most = request.params.max_tokens
    limit = max_len if most is None else min(max_len, len(request.prompt) + most)
    search = search_of(frozenset({EOS}))(request, limit - len(request.prompt))
    assert search is not None
    living = {0: list(request.prompt)}
    while living:
        found = {}
        for member, tokens in living.items():
            chain: list[int] = []
            for token in tokens:
                chain.append(digest(chain[-1] if chain else "root", token))
            seen = see([chain[-w:] if w else chain for w in windows])
            found[member] = candidates(seen, len(tokens), search.num_candidates)
        heirs = search.advance(found)
        living = {member: [*living[heir.parent], heir.token] for member, heir in heirs.items()}
    return [list(ending.tokens) for ending in search.endings()]


class FakeExecutor:
    """Runs plans over hashes. A slot in `poisoned` fails its next sampled row."""

    def __init__(self, capacity: Capacity, *, depth: int = 1, resident: bool = True) -> None:
        self.depth, self.resident = depth, resident
        self.windows = [spec.window for spec in capacity.groups]
        self.size = capacity.block_size
        self.cells: list[dict[tuple[int, int], int]] = [{} for _ in capacity.groups]
        self.rows: dict[int, Start] = {}
        self.tokens: dict[int, list[int]] = {}
        self.tables: dict[int, list[list[int]]] = {}
        self.plans: deque[Plan] = deque()
        self.owned: dict[int, tuple[int, list[list[int]]]] = {}
        self.written: deque[dict[tuple[int, int], tuple[int, int]]] = deque()
        self.poisoned: set[int] = set()
        self.most_under_way = 0

    def start(self, config: EngineConfig) -> Capacity:
        raise NotImplementedError

    def supply(self, step: int, masks: object) -> None:
        raise NotImplementedError

    def call(self, method: str, *args: object) -> list[object]:
        raise NotImplementedError

    def close(self) -> None:
        pass

    def watch(self, on_lost: object) -> None:
        pass

    def ranks(self) -> list[object]:
        return []

    def submit(self, plan: Plan) -> None:
        self.plans.append(plan)
        self.most_under_way = max(self.most_under_way, len(self.plans))
        assert len(self.plans) <= self.depth
        self._own(plan)

    def _own(self, plan: Plan) -> None:
        """Nothing that a plan under way writes is given to another sequence by a later plan."""
        for start in plan.started:
            self.owned[start.slot] = (plan.step, [list(blocks) for blocks in start.blocks])
        writes = {}
        for row in plan.rows:
            owner, tables = self.owned[row.slot]
            for group, table in enumerate(tables):
                table += row.grown[group] if row.grown else ()
                for position in range(row.start, row.start + row.num_tokens):
                    writes[group, table[position // self.size]] = (row.slot, owner)
        for copy in plan.copies:
            assert (copy.group, copy.target) in writes, "a copy that nobody wanted"
        for earlier in self.written:
            for cell, owner in writes.items():
                assert earlier.get(cell, owner) == owner, "given away while under way"
        self.written.append(writes)

    def collect(self) -> Result:
        plan = self.plans.popleft()
        self.written.popleft()
        for slot in plan.stopped:
            del self.rows[slot], self.tokens[slot], self.tables[slot]
        for start in plan.started:
            assert start.slot not in self.rows, "a slot was filled twice"
            self.rows[start.slot] = start
            self.tokens[start.slot] = list(start.tokens)
            self.tables[start.slot] = [list(blocks) for blocks in start.blocks]
        self._copy(plan)
        sampled, failed, found = [], {}, {}
        for row in plan.rows:
            seen = self._compute(row)
            if row.sample:
                sampled.append((self._sample(row, seen),))
                if num := self.rows[row.slot].candidates:
                    found[row.slot] = candidates(seen, row.start + row.num_tokens, num)
                if row.slot in self.poisoned:
                    self.poisoned.discard(row.slot)
                    failed[row.slot] = "poisoned"
        return Result(step=plan.step, tokens=tuple(sampled), candidates=found, failed=failed)

    def _copy(self, plan: Plan) -> None:
        read = [
            (copy, [self.cells[copy.group].get((copy.source, i)) for i in range(self.size)])
            for copy in plan.copies
        ]
        for copy, values in read:
            for i, value in enumerate(values):
                if value is not None:
                    self.cells[copy.group][copy.target, i] = value

    def _compute(self, row: Row) -> int:
        tokens, tables = self.tokens[row.slot], self.tables[row.slot]
        if row.tokens:
            tokens[row.start :] = row.tokens
        for table, grown in zip(tables, row.grown, strict=False):
            table += grown
        end = row.start + row.num_tokens
        assert row.num_tokens > 0 and end <= len(tokens), "tokens that nobody knows"
        for cells, table in zip(self.cells, tables, strict=True):
            for position in range(row.start, end):
                before = self._read(cells, table, position - 1) if position else "root"
                block = table[position // self.size]
                assert block != 0, "a null block was written"
                cells[block, position % self.size] = digest(before, tokens[position])
        return see([self._visible(g, tables[g], end - 1) for g in range(len(tables))])

    def _sample(self, row: Row, seen: int) -> int:
        start, end = self.rows[row.slot], row.start + row.num_tokens
        token = choose(seen, end, start.params.seed or 0, start.sibling)
        if self.resident:
            assert len(self.tokens[row.slot]) == end
            self.tokens[row.slot].append(token)
        return token

    def _read(self, cells: dict[tuple[int, int], int], table: list[int], position: int) -> int:
        return cells.get((table[position // self.size], position % self.size), -1)

    def _visible(self, group: int, table: list[int], position: int) -> list[int]:
        window = self.windows[group]
        first = max(0, position - window + 1) if window else 0
        return [self._read(self.cells[group], table, p) for p in range(first, position + 1)]


def capacity(
    *,
    num_blocks: int,
    block_size: int = 4,
    max_model_len: int = 64,
    step_tokens: int = 512,
    prompt_tokens: int | None = None,
    windows: tuple[int | None, ...] = (None,),
) -> Capacity:
    return Capacity(
        groups=tuple(CacheSpec(1, 1, window) for window in windows),
        num_blocks=(num_blocks,) * len(windows),
        block_size=block_size,
        max_model_len=max_model_len,
        step_tokens=step_tokens,
        prompt_tokens=prompt_tokens,
        vocab_size=VOCAB,
        eos_token_ids=frozenset({EOS}),
        dtype="float32",
        device="cpu",
        digest="fake",
    )
