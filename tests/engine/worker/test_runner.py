"""Plans through the runner: the right ids, tables, slots, rows and answers."""

from __future__ import annotations

import random
from itertools import count

import pytest
import torch
from shoal.engine.plan import Copy, Plan, Row, Start
from shoal.engine.request import SamplingParams
from shoal.engine.worker import runner as module
from shoal.engine.worker.device import Device, Mark

from tests.engine.worker.fake import (
    BLOCK,
    VOCAB,
    PrefixModel,
    blocks_for,
    play,
    runner,
)

GREEDY = SamplingParams(temperature=0.0)
PROMPT = (5, 9, 9, 1, 30, 2, 44, 7, 8, 12, 3)


@pytest.fixture(scope="module")
def model():
    return PrefixModel()


@pytest.mark.parametrize("chunk", [1, 2, 3, 4, 7, 10])
def test_chunks_change_nothing(model, chunk):
    params = SamplingParams(seed=4, logprobs=2, prompt_logprobs=3)
    whole = play(runner(model)[0], params, PROMPT, 12)
    assert play(runner(model)[0], params, PROMPT, 12, chunk=chunk) == whole
    assert len(whole[2]) == len(PROMPT) - 1 and len(whole[1]) == 12


@pytest.mark.parametrize("cut", [1, 5, 11])
@pytest.mark.parametrize("chunk", [3, 1000])
def test_a_generation_goes_on_from_its_emitted_tokens(model, cut, chunk):
    params = SamplingParams(
        seed=-7,
        temperature=1.3,
        presence_penalty=1.0,
        repetition_penalty=1.2,
        frequency_penalty=0.5,
        min_tokens=8,
        stop_token_ids=[4, 11],
        bad_words_ids=[[1], [2, 3]],
    )
    whole = play(runner(model)[0], params, PROMPT, 20, sibling=2)[0]
    rest = play(
        runner(model)[0],
        params,
        PROMPT,
        20 - cut,
        emitted=whole[:cut],
        chunk=chunk,
        slot=0,
        first=7,
        sibling=2,
    )[0]
    assert whole[:cut] + rest == whole


def test_prompt_scores_are_those_of_a_softmax(model):
    scores = play(
        runner(model)[0], SamplingParams(temperature=0.0, prompt_logprobs=2), PROMPT, 1, chunk=4
    )[2]
    run, _ = runner(model)
    full = SamplingParams(temperature=0.0, logprobs=-1)
    for position, entry in enumerate(scores, start=1):
        at = play(run, full, PROMPT[:position], 1)[1][0]
        found = dict(at.top)
        assert entry.logprob == found[PROMPT[position]]
        assert entry.top == at.top[:2]
        assert entry.rank == 1 + sum(value > entry.logprob for value in found.values())


@pytest.mark.parametrize("piece", [1, 3])
def test_logits_come_in_pieces(model, piece, monkeypatch):
    params = SamplingParams(seed=1, logprobs=1, prompt_logprobs=1)
    whole = play(runner(model)[0], params, PROMPT, 3)
    monkeypatch.setattr(module, "PIECE_BYTES", 4 * VOCAB * piece)
    run, _ = runner(model)
    most = []
    real = model.logits
    monkeypatch.setattr(model, "logits", lambda h: most.append(len(h)) or real(h), raising=False)
    assert play(run, params, PROMPT, 3) == whole
    assert max(most) == piece


def batch_of(model, params_of, steps=6):
    """Sixteen sequences through one runner: mixed lengths, chunks beside decodes, in one plan."""
    run, _ = runner(model, num_blocks=200)
    rng = random.Random(0)
    prompts = [[rng.randrange(1, VOCAB) for _ in range(rng.randint(1, 14))] for _ in range(16)]
    state, out, failed = [], {slot: [] for slot in range(16)}, {}
    for slot, prompt in enumerate(prompts):
        state.append([0, len(prompt), blocks_for(len(prompt) + steps, 1 + slot * 6)])
    for step in range(steps + 6):
        started, rows = [], []
        for slot, (at, upto, blocks) in enumerate(state):
            if step < slot // 4 or len(out[slot]) == steps or slot in failed:
                continue
            if at == 0:
                tokens = tuple(prompts[slot])
                started.append(Start(slot, tokens, len(tokens), blocks, params_of(slot)))
            count = min(5, upto - at)
            rows.append(Row(slot, at, count, (), at + count == upto))
            state[slot][0] = at + count
        result = run.run(Plan(step=step, started=tuple(started), rows=tuple(rows)))
        failed |= result.failed
        answers = iter(result.tokens)
        for row in rows:
            if row.sample:
                out[row.slot] += next(answers)
                state[row.slot][1] += 1
    return out, failed, prompts


def seeded(slot):
    return SamplingParams(seed=slot, temperature=0.9, top_k=(slot % 3) * 5, presence_penalty=0.5)


def test_a_sequence_is_the_same_alone_and_in_company(model):
    out, failed, prompts = batch_of(model, seeded)
    assert not failed
    for slot, prompt in enumerate(prompts):
        assert play(runner(model)[0], seeded(slot), prompt, 6)[0] == out[slot]


def raising(emitted, row):
    if len(emitted) == 2:
        raise ValueError("enough")
    return row


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"logits_processors": [raising]}, "a logits processor raised ValueError: enough"),
        ({"logit_bias": {VOCAB: 1.0}}, "logit_bias holds token id"),
    ],
)
def test_a_failing_row_leaves_the_fifteen_others_alone(model, fault, reason):
    well, _, _ = batch_of(model, seeded)
    broken = SamplingParams(seed=1, **fault)
    out, failed, _ = batch_of(model, lambda slot: broken if slot == 6 else seeded(slot))
    assert list(failed) == [6] and failed[6].startswith(reason)
    assert {s: t for s, t in out.items() if s != 6} == {s: t for s, t in well.items() if s != 6}


def test_refused_parameters_fail_before_the_first_sample(model):
    run, _ = runner(model)
    params = SamplingParams(allowed_token_ids=[VOCAB])
    start = Start(0, PROMPT, len(PROMPT), blocks_for(12, 1), params)
    plan = Plan(step=0, started=(start,), rows=(Row(0, 0, 4, (), False),))
    result = run.run(plan)
    assert result.tokens == () and "allowed_token_ids" in result.failed[0]


def test_copied_blocks_carry_a_fork_on(model):
    """A second sequence shares the full blocks of the first and copies its last, partial one."""
    run, _ = runner(model)
    shared = blocks_for(len(PROMPT) + 8, 1)
    forked = tuple((*blocks[:2], 40, 41, 42) for blocks in shared)
    tokens = (*PROMPT,)
    rows = (Row(0, 0, len(PROMPT), (), True),)
    run.run(Plan(step=0, started=(Start(0, tokens, 11, shared, GREEDY),), rows=rows))
    copies = tuple(Copy(group, shared[group][2], 40) for group in range(2))
    started = (Start(1, tokens, 11, forked, SamplingParams(seed=8)),)
    out = []
    for at in range(len(PROMPT) - 1, len(PROMPT) + 5):
        rows = (Row(1, at, 1, (), True), Row(0, at + 1, 1, (), True))
        result = run.run(Plan(step=1, started=started, rows=rows, copies=copies))
        out += result.tokens[0]
        copies, started = (), ()
    assert out == play(runner(model)[0], SamplingParams(seed=8), PROMPT, 6)[0]


def test_copies_happen_all_at_once(model):
    _, cache = runner(model)
    for layer in cache.layers:
        for block in range(1, 5):
            layer[:, block] = block
    cache.copy([Copy(0, 1, 2), Copy(0, 2, 1), Copy(0, 2, 3), Copy(1, 4, 1)])
    after = ([2, 1, 2, 4], [4, 2, 3, 4], [2, 1, 2, 4])
    for layer, expected in zip(cache.layers, after, strict=True):
        assert layer[0, 1:5, 0, 0, 0].tolist() == expected
        assert layer[1, 1:5, -1, 0, 1].tolist() == expected


def test_a_slot_is_taken_over(model):
    run, _ = runner(model)
    play(run, SamplingParams(seed=3, logprobs=1, prompt_logprobs=1, min_tokens=9), PROMPT, 4)
    run.run(Plan(step=9, stopped=(3,)))
    again = play(run, GREEDY, PROMPT[:4], 5)
    assert again == play(runner(model)[0], GREEDY, PROMPT[:4], 5)


def test_ids_that_the_host_sends_are_used(model):
    """Where tokens are sampled elsewhere, the row's own ids are the ones that count."""
    run, _ = runner(model)
    blocks = blocks_for(len(PROMPT) + 3, 1)
    start = Start(0, PROMPT, len(PROMPT), blocks, GREEDY)
    run.run(Plan(step=0, started=(start,), rows=(Row(0, 0, 11, (), True),)))
    row = Row(0, 11, 2, (), True, (17, 18))
    found = run.run(Plan(step=1, rows=(row,))).tokens[0]
    assert list(found) == play(runner(model)[0], GREEDY, (*PROMPT, 17, 18), 1)[0]


def test_rows_widen_with_the_sequence_and_not_before(model):
    run, _ = runner(model, num_blocks=300)
    assert run._slots.ids.shape[1] == 256
    prompt = tuple(1 + i % (VOCAB - 1) for i in range(300))
    whole = play(run, SamplingParams(seed=2), prompt, 3, chunk=128)[0]
    assert run._slots.ids.shape[1] == 512
    assert whole == play(runner(model, num_blocks=300)[0], SamplingParams(seed=2), prompt, 3)[0]


def test_only_wanted_rows_become_logits(model):
    run, _ = runner(model)
    model.batches.clear()
    play(run, GREEDY, PROMPT, 2, chunk=4)
    assert [len(batch.wanted) for batch in model.batches] == [0, 0, 1, 1]
    shapes = [(tuple(b.tokens.shape), b.block_tables[0].shape[1]) for b in model.batches]
    assert shapes == [((4,), 1), ((4,), 2), ((3,), 3), ((1,), 3)]
    assert all(batch.tokens.dtype == torch.int64 for batch in model.batches)
    assert all(batch.kv_len.dtype == torch.int32 for batch in model.batches)
    assert BLOCK == 4


def test_a_gap_ends_where_the_rows_are_ready(model, monkeypatch):
    """What the host takes to lay a step out is part of it: the device has nothing to do then."""
    run, _ = runner(model)
    clock = count()
    monkeypatch.setattr(Device, "mark", lambda self: Mark(None, float(next(clock))))
    real = module.model_input

    def late(*given):
        for _ in range(100):
            next(clock)
        return real(*given)

    monkeypatch.setattr(module, "model_input", late)
    play(run, GREEDY, PROMPT, 4)
    gaps = list(run._progress.gaps)
    assert len(gaps) >= 3 and min(gaps) > 100


def test_time_without_work_is_no_gap(model):
    run, _ = runner(model)
    start = Start(0, PROMPT, len(PROMPT), blocks_for(len(PROMPT) + 4, 1), GREEDY)
    rows = [Row(0, 0, len(PROMPT), (), True)]
    rows += [Row(0, len(PROMPT) + i, 1, (), True) for i in range(3)]
    plans = [Plan(step=i, started=(start,)[i:], rows=(row,)) for i, row in enumerate(rows)]
    for plan in plans[:2]:
        run.run(plan)
        run._progress.done(plan.step)
    assert not run._progress.gaps, "the second was launched when the first was done"
    under_way = [run.launch(plan) for plan in plans[2:]]
    for launched in under_way:
        launched.result()
    assert len(run._progress.gaps) == 1
