"""The sampler against plain Python, row by row, and one row against its company."""

from __future__ import annotations

import math
import random
from collections import Counter

import numpy as np
import pytest
import torch
from shoal.engine.plan import Start
from shoal.engine.request import SamplingParams, fold_seed
from shoal.engine.worker import sampler as sampler_module
from shoal.engine.worker.columns import SamplingColumns
from shoal.engine.worker.device import Device, pick
from shoal.engine.worker.phrases import Phrases
from shoal.engine.worker.sampler import Sampler
from shoal.engine.worker.slots import Slots

from tests.engine.worker import oracle

VOCAB = 97
EOS = frozenset({3, 5})


class Bench:
    """A sampler with one sequence a slot."""

    def __init__(self, starts: list[Start], vocab: int = VOCAB) -> None:
        device = pick("cpu")
        slots = 1 + max(start.slot for start in starts)
        self.columns = SamplingColumns(slots, vocab, EOS, device)
        self.slots = Slots(slots, 1, device)
        for start in starts:
            self.columns.put(start)
        self.slots.start(starts)
        self.sampler = Sampler(self.slots, self.columns, device)
        self.slot = np.array([start.slot for start in starts])
        self.position = np.array([len(start.tokens) for start in starts])

    def sample(self, logits):
        drawing = self.sampler.sample(logits.clone(), self.slot, self.position)
        found = drawing.read()
        assert drawing.tokens.tolist() == found.ids
        return found


def start(slot, params, prompt=(1, 2), emitted=(), sibling=0):
    return Start(slot, (*prompt, *emitted), len(prompt), ((1,),), params, sibling)


def some_params(rng: random.Random) -> SamplingParams:
    """Parameters of which about half are set."""

    def maybe(value, default):
        return value if rng.random() < 0.4 else default

    ids = range(VOCAB)
    return SamplingParams(
        temperature=rng.choice([0.0, 0.3, 1.0, 1.7]),
        top_p=maybe(rng.uniform(0.1, 0.99), 1.0),
        top_k=maybe(rng.choice([1, 2, 7, 60, 5000]), 0),
        min_p=maybe(rng.uniform(0.0, 0.3), 0.0),
        presence_penalty=maybe(rng.uniform(-2, 2), 0.0),
        frequency_penalty=maybe(rng.uniform(-2, 2), 0.0),
        repetition_penalty=maybe(rng.uniform(0.5, 2), 1.0),
        seed=rng.choice([0, 1, 2**40 + 3, 2**64 - 1]),
        logit_bias=maybe({t: rng.uniform(-5, 5) for t in rng.sample(ids, 4)}, None),
        allowed_token_ids=maybe(rng.sample(ids, 30), None),
        bad_words_ids=maybe([[rng.choice(ids) for _ in range(rng.choice([1, 2, 3]))]] * 2, ()),
        min_tokens=maybe(rng.randint(0, 12), 0),
        stop_token_ids=maybe(rng.sample(ids, 2), ()),
        logprobs=maybe(rng.choice([0, 1, 5, -1]), None),
        max_tokens=None,
    )


def some_starts(rng: random.Random, count: int) -> list[Start]:
    def tokens(low):
        return [rng.randrange(12) for _ in range(rng.randint(low, 15))]

    return [
        start(slot, some_params(rng), tokens(1), tokens(0), rng.randrange(3))
        for slot in rng.sample(range(40), count)
    ]


def some_logits(count, seed, vocab=VOCAB):
    return torch.randn(count, vocab, generator=torch.Generator().manual_seed(seed)) * 2


@pytest.mark.parametrize("seed", range(12))
def test_every_row_is_that_of_plain_python(seed):
    starts = some_starts(random.Random(seed), 24)
    logits = some_logits(24, seed)
    found = Bench(starts).sample(logits)
    assert not found.failed
    for row, entry in enumerate(starts):
        prompt, emitted = entry.tokens[: entry.num_prompt], entry.tokens[entry.num_prompt :]
        u = oracle.uniform(entry.params.seed, len(entry.tokens), entry.sibling)
        expected = oracle.edited(logits[row].tolist(), entry.params, prompt, emitted, EOS)
        assert found.ids[row] == oracle.choose(expected, entry.params, u), (row, entry)


def test_the_least_top_p_leaves_the_first_token():
    logits = some_logits(2, 1)
    rows = [SamplingParams(top_p=1e-300), SamplingParams(top_p=1e-300, top_k=5)]
    found = Bench([start(slot, params) for slot, params in enumerate(rows)]).sample(logits)
    assert found.ids == logits.argmax(-1).tolist()


def test_long_texts_are_penalised_in_pieces(monkeypatch):
    starts = some_starts(random.Random(5), 24)
    logits = some_logits(24, 5)
    whole = Bench(starts).sample(logits)
    monkeypatch.setattr(sampler_module, "IDS_AT_ONCE", 40)
    widths = []
    penalize = sampler_module.ops.penalize

    def watched(logits, rows, ids, *more):
        widths.append(ids.numel())
        penalize(logits, rows, ids, *more)

    monkeypatch.setattr(sampler_module.ops, "penalize", watched)
    assert Bench(starts).sample(logits).ids == whole.ids
    assert len(widths) > 1 and max(widths) <= 40


@pytest.mark.parametrize("seed", range(4))
def test_a_row_is_the_same_alone_and_in_company(seed):
    rng = random.Random(100 + seed)
    starts = some_starts(rng, 16)
    logits = some_logits(16, seed, 50_000)
    together = Bench(starts, 50_000).sample(logits)
    order = rng.sample(range(16), 16)
    shuffled = Bench([starts[row] for row in order], 50_000).sample(logits[order])
    for row, entry in enumerate(starts):
        alone = Bench([entry], 50_000).sample(logits[row : row + 1])
        assert alone.ids == [together.ids[row]]
        assert alone.logprobs.get(0) == together.logprobs.get(row)
        assert shuffled.ids[order.index(row)] == together.ids[row]


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"temperature": 0.6},
        {"top_k": 6},
        {"top_p": 0.8},
        {"min_p": 0.2},
        {"top_k": 10, "top_p": 0.7, "min_p": 0.05, "temperature": 1.5},
    ],
)
def test_draws_have_the_distribution_they_should(params):
    vocab, rows = 12, 20_000
    logits = some_logits(1, 5, vocab)
    starts = [start(i, SamplingParams(seed=i, **params)) for i in range(rows)]
    counts = Counter(Bench(starts, vocab).sample(logits.expand(rows, vocab)).ids)
    chosen = SamplingParams(**params)
    grid = [oracle.choose(logits[0].tolist(), chosen, (i + 0.5) / 50_000) for i in range(50_000)]
    expected = {token: rows * n / 50_000 for token, n in Counter(grid).items()}
    assert set(counts) <= set(expected)
    chi = sum((counts[token] - n) ** 2 / n for token, n in expected.items())
    assert chi < 31.3  # 11 degrees of freedom at most, 0.1 %


def test_draws_differ_by_seed_position_and_sibling_only():
    logits = torch.zeros(1, 5000)

    def drawn(seed, emitted=(), sibling=0):
        params = SamplingParams(seed=seed)
        return Bench([start(0, params, (1,), emitted, sibling)], 5000).sample(logits).ids

    assert drawn(1) == drawn(1)
    ids = [drawn(1), drawn(2), drawn(1, (7,)), drawn(1, sibling=1)]
    assert len({tuple(i) for i in ids}) == 4
    assert drawn(1, (7,)) == drawn(1, (8,))


def test_seeds_of_any_size_and_sign():
    assert fold_seed(5) == 5 and fold_seed(2**64 - 1) == 2**64 - 1
    seeds = (-1, 2**64, -(2**70), 10**40, -(10**40), 0, 2**63, 2**64 - 1)
    folded = [fold_seed(seed) for seed in seeds]
    assert len(set(folded)) == len(folded)
    assert all(0 <= seed < 2**64 for seed in folded)
    assert [fold_seed(seed) for seed in folded] == folded
    keys = [
        int(Bench([start(0, SamplingParams(seed=seed), (1,))], 50).columns.key[0])
        for seed in (*seeds, *folded)
    ]
    assert keys[: len(seeds)] == keys[len(seeds) :] and len(set(keys)) == len(seeds)
    assert keys[-3:] == [0, -(2**63), -1]


def test_emitted_tokens_count_as_emitted_after_resumption():
    """Penalties, bad words, least length and draws are functions of prompt and emitted tokens."""
    params = SamplingParams(
        temperature=0.0, min_tokens=2, bad_words_ids=[[7, 8]], frequency_penalty=2.0
    )
    logits = torch.zeros(1, VOCAB)
    logits[0, [3, 8, 9, 7]] = torch.tensor([9.0, 8.0, 7.0, 6.9])

    def chosen(prompt, emitted):
        return Bench([start(0, params, prompt, emitted)]).sample(logits).ids

    assert chosen((1,), (2, 2)) == [3]  # long enough: the end may come
    assert chosen((1, 2), (2,)) == [8]  # not yet
    assert chosen((1, 2), (7,)) == [9]  # 7 8 is a bad word, and 7 counts as emitted
    assert chosen((1, 7), ()) == [8]  # the prompt's 7 does not begin a bad word
    assert chosen((1,), (9, 7, 9, 7)) == [3]
    assert chosen((9, 9, 9), ()) == [8]  # frequency is about output alone


def test_a_bad_word_of_several_tokens_is_banned_only_where_it_would_end():
    params = SamplingParams(temperature=0.0, bad_words_ids=[[4, 4, 6], [11]])
    logits = torch.zeros(1, VOCAB)
    logits[0, [6, 11, 12]] = torch.tensor([3.0, 4.0, 2.0])
    for emitted, expected in (((), 6), ((4,), 6), ((4, 4), 12), ((4, 4, 4), 12), ((4, 5, 4), 6)):
        assert Bench([start(0, params, (4, 4), emitted)]).sample(logits).ids == [expected]


@pytest.mark.parametrize("seed", range(20))
def test_what_completes_a_phrase(seed):
    rng = random.Random(seed)

    def some(least, most):
        return [rng.choice((1, 2, 2**20)) for _ in range(rng.randint(least, most))]

    words = [some(2, 5) for _ in range(30)]
    phrases = Phrases(words)
    assert phrases.reach == max(map(len, words)) - 1
    for _ in range(30):
        emitted = some(0, phrases.reach)
        found = phrases.completing(np.array(emitted, dtype=np.int32))
        text = [0] * 5 + emitted
        assert sorted(found) == sorted(
            word[-1] for word in words if text[len(text) + 1 - len(word) :] == word[:-1]
        )


def test_what_a_row_asks_for_goes_to_the_device_when_it_enters(monkeypatch):
    asked = SamplingParams(
        temperature=0.0,
        logit_bias={token: token / 8 for token in range(VOCAB)},
        allowed_token_ids=range(0, VOCAB, 2),
        bad_words_ids=[[token] for token in range(80, VOCAB)],
        stop_token_ids=range(40, 79),
        min_tokens=3,
        max_tokens=None,
    )
    bench = Bench([start(slot, asked) for slot in range(3)])
    sizes = []
    upload = Device.upload
    monkeypatch.setattr(Device, "upload", lambda d, a: sizes.append(a.size) or upload(d, a))
    logits = some_logits(3, 4) / 100
    assert bench.sample(logits).ids == [38] * 3
    assert max(sizes) <= 4  # rows, and where the edits of each begin


def test_ignoring_the_end_leaves_it_to_be_sampled():
    logits = torch.zeros(1, VOCAB)
    logits[0, 3] = 5.0
    params = SamplingParams(temperature=0.0, ignore_eos=True)
    assert Bench([start(0, params)]).sample(logits).ids == [3]


def test_log_probabilities_are_those_of_the_raw_logits():
    params = SamplingParams(
        temperature=0.0, logprobs=3, logit_bias={40: 100.0}, repetition_penalty=1.5
    )
    full = SamplingParams(temperature=0.0, logprobs=-1)
    none = SamplingParams(temperature=0.0)
    only = SamplingParams(temperature=0.0, logprobs=0)
    logits = some_logits(4, 1)
    starts = [start(i, p) for i, p in enumerate([params, full, none, only])]
    found = Bench(starts).sample(logits)
    assert set(found.logprobs) == {0, 1, 3}
    expected = logits.log_softmax(-1)
    first = found.logprobs[0]
    assert found.ids[0] == 40
    assert first.logprob == pytest.approx(float(expected[0, 40]), abs=1e-6)
    assert first.rank == 1 + int((logits[0] > logits[0, 40]).sum())
    top = expected[0].topk(3)
    assert [token for token, _ in first.top] == top.indices.tolist()
    assert [value for _, value in first.top] == pytest.approx(top.values.tolist())
    second = found.logprobs[1]
    assert second.rank == 1 and len(second.top) == VOCAB
    assert second.top[0] == (found.ids[1], second.logprob)  # to the bit
    assert found.logprobs[3].top == ()


def raising(emitted, row):
    raise RuntimeError("no")


def test_candidates_are_the_best_after_edits_with_what_they_were_before():
    logits = some_logits(3, 8)
    params = SamplingParams(
        n=4, use_beam_search=True, temperature=0, logit_bias={90: 30.0, 91: -30.0}, logprobs=2
    )
    asked = start(0, params)._replace(candidates=6)
    found = Bench([start(1, SamplingParams()), asked, start(2, params)]).sample(logits)
    assert set(found.candidates) == {1}
    raw = logits[1].log_softmax(-1)
    scores = raw.clone()
    scores[90], scores[91] = raw[90] + 30, raw[91] - 30
    told = found.candidates[1]
    assert [one.token for one in told] == scores.topk(6).indices.tolist()
    assert told[0].token == 90
    for one in told:
        assert one.score == pytest.approx(float(scores[one.token]), abs=1e-5)
        assert one.logprobs.logprob == pytest.approx(float(raw[one.token]), abs=1e-5)
        assert one.logprobs.rank == 1 + int((raw > raw[one.token]).sum())
        assert [token for token, _ in one.logprobs.top] == raw.topk(2).indices.tolist()


FAULTS = [
    ({"logits_processors": [raising]}, "raised RuntimeError: no"),
    ({"logits_processors": [lambda emitted, row: row[:-1]]}, f"not a tensor [{VOCAB}]"),
    ({"logits_processors": [lambda emitted, row: None]}, "returned NoneType"),
    ({"logits_processors": [lambda emitted, row: row.to_sparse()]}, "cannot be read"),
    ({"logits_processors": [lambda emitted, row: row * math.nan]}, "not a number"),
    ({"logits_processors": [lambda emitted, row: row.fill_(-math.inf)]}, "every one is masked"),
    ({"allowed_token_ids": [3, 5], "min_tokens": 2}, "every one is masked"),
    ({"logit_bias": {VOCAB: 1.0}}, f"logit_bias holds token id {VOCAB}"),
    ({"allowed_token_ids": [-1]}, "allowed_token_ids holds token id -1"),
    ({"bad_words_ids": [[1, 10**9]]}, "bad_words_ids holds token id 1000000000"),
    ({"logit_bias": {4: math.inf}}, "infinite"),
]


@pytest.mark.parametrize(("fault", "reason"), FAULTS)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_that_fails_fails_alone(fault, reason, temperature):
    rng = random.Random(9)
    starts, logits = some_starts(rng, 16), some_logits(16, 9)
    well = Bench(starts).sample(logits)
    params = SamplingParams(temperature=temperature, seed=1, logprobs=2, top_p=0.9, **fault)
    broken = [*starts[:6], start(starts[6].slot, params), *starts[7:]]
    found = Bench(broken).sample(logits)
    assert list(found.failed) == [6] and reason in found.failed[6]
    for row in {*range(16)} - {6}:
        assert found.ids[row] == well.ids[row]
        assert found.logprobs.get(row) == well.logprobs.get(row)


@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize("params", [{}, {"temperature": 0.0}, {"allowed_token_ids": [50]}])
def test_a_row_of_nan_fails_alone(everywhere, params):
    starts, logits = some_starts(random.Random(3), 16), some_logits(16, 3)
    starts[2] = start(starts[2].slot, SamplingParams(seed=1, top_k=5, logprobs=5, **params))
    well = Bench(starts).sample(logits)
    logits[2, slice(None) if everywhere else slice(7, 8)] = math.nan
    found = Bench(starts).sample(logits)
    assert list(found.failed) == [2] and "not a number" in found.failed[2]
    assert 0 <= found.ids[2] < VOCAB
    for row in {*range(16)} - {2}:
        assert found.ids[row] == well.ids[row]
        assert found.logprobs.get(row) == well.logprobs.get(row)


def test_a_processor_sees_emitted_tokens_and_its_own_copy():
    seen = []

    def processor(emitted, row):
        seen.append(list(emitted))
        row.fill_(0.0)
        row[60] = 1.0
        return row

    params = SamplingParams(temperature=0.0, logprobs=0, logits_processors=[processor])
    logits = some_logits(1, 0)
    found = Bench([start(0, params, (1, 2), (8, 9))]).sample(logits)
    assert seen == [[8, 9]] and found.ids == [60]
    assert found.logprobs[0].logprob == pytest.approx(float(logits.log_softmax(-1)[0, 60]))


def test_a_slot_forgets_its_last_tenant():
    bench = Bench([start(0, SamplingParams(logit_bias={VOCAB: 1.0}, logprobs=2))])
    bench.columns.put(start(0, SamplingParams(temperature=0.0)))
    found = bench.sample(some_logits(1, 0))
    assert not found.failed and not found.logprobs
