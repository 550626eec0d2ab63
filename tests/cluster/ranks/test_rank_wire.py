"""What an executor and its ranks tell each other: any plan and any result, whatever was asked."""

from __future__ import annotations

import dataclasses

import pytest
from shoal.cluster import rank_wire, wire
from shoal.engine.plan import Plan, Result, Row, Start
from shoal.engine.request import SamplingParams, TokenLogprobs, fold_seed


def start(slot: int, params: SamplingParams) -> Start:
    return Start(slot, (1, 2, 3), 3, ((4,),), params, sibling=slot, candidates=slot)


def crossed(plan: Plan) -> Plan:
    """As a rank has it."""
    unread = rank_wire.frame(rank_wire.run_of(plan))
    message = rank_wire.from_executor(rank_wire.take_frame(unread) or b"")
    assert not unread and isinstance(message, rank_wire.Run)
    return rank_wire.plan_of(message)


def test_a_plan_survives_the_wire() -> None:
    first = SamplingParams(n=2, seed=3, logit_bias={5: -1.5}, bad_words_ids=[[1, 2], [3]])
    first = dataclasses.replace(first, max_tokens=None)
    second = SamplingParams(temperature=0, max_tokens=None, logprobs=2, min_tokens=4)
    rows = (Row(0, 0, 3, (), True), Row(1, 0, 3, ((7, 8),), True, (9,), (1,)))
    starts = (start(0, first), start(1, first), start(2, second))
    plan = Plan(step=3, stopped=(4,), started=starts, rows=rows)
    assert crossed(plan) == plan
    plain = Plan(step=4, rows=rows)
    assert crossed(plain) == plain


def test_no_number_is_too_great_to_cross() -> None:
    huge = 10**30
    params = SamplingParams(
        seed=-huge,
        top_k=huge,
        max_tokens=huge,
        min_tokens=huge,
        logprobs=huge,
        prompt_logprobs=huge,
        truncate_prompt_tokens=huge,
    )
    (got,) = crossed(Plan(step=1, started=(start(0, params),))).started
    assert got.params.seed == fold_seed(-huge)
    for name in ("top_k", "min_tokens", "logprobs", "prompt_logprobs"):
        assert getattr(got.params, name) >= 1 << 40, name


def test_siblings_bring_their_parameters_once_and_without_their_texts() -> None:
    texts = {"stop": ["st" * 2000] * 64, "bad_words": ["wo" * 2000] * 1024}
    params = SamplingParams(n=8, bad_words_ids=[[1]], logit_bias=dict.fromkeys(range(5000), 1.0))
    texted = dataclasses.replace(params, **texts)
    one, eight, eight_texted = (
        len(rank_wire.frame(rank_wire.run_of(Plan(step=1, started=starts))))
        for starts in (
            (start(0, params),),
            tuple(start(slot, params) for slot in range(8)),
            tuple(start(slot, texted) for slot in range(8)),
        )
    )
    assert eight - one < 1000
    assert eight_texted == eight


def test_lists_are_not_walked_again_for_ranks() -> None:
    """A hundred thousand ids take the engine's thread 10 ms, and every stream waits for it."""
    lists = {"stop_token_ids": [4], "allowed_token_ids": range(9), "bad_words_ids": [[1, 2]]}
    params = SamplingParams(seed=-1, logit_bias={5: 1.0}, **lists)
    (sent,) = rank_wire.run_of(Plan(step=1, started=(start(0, params),))).params
    assert sent.seed == fold_seed(-1)
    for name in (*lists, "logit_bias"):
        assert getattr(sent, name) is getattr(params, name), name


def test_what_ranks_are_told_and_tell_has_no_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MAX_FRAME", 2000)
    tokens = tuple(range(3000))
    plan = Plan(step=1, started=(Start(0, tokens, 3000, (), SamplingParams(max_tokens=None)),))
    assert crossed(plan) == plan
    scored = TokenLogprobs(-1.0, 1, tuple((token, -1.0) for token in tokens))
    done = rank_wire.Done(Result(step=1, tokens=((1,),), logprobs=((scored,),)))
    unread = rank_wire.frame(done)
    assert rank_wire.from_rank(rank_wire.take_frame(unread) or b"") == done
