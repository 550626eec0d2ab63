"""What an engine takes on and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
from shoal.engine.admission import Seeds, room_for_output
from shoal.engine.errors import ContextTooLong, InvalidRequest, Overloaded
from shoal.engine.keys import chained_keys, root_key
from shoal.engine.request import FinishReason, Request, SamplingParams

from .core.fake import EOS, VOCAB
from .scripted import MAX_LEN, Caller, Executor, request, running


@pytest.mark.parametrize(
    ("emitted", "params", "finish", "stop"),
    [
        ((5, EOS), {"ignore_eos": False}, FinishReason.STOP, None),
        ((5, 6), {"stop_token_ids": [6]}, FinishReason.STOP, 6),
        ((5, 6), {"max_tokens": 2}, FinishReason.LENGTH, None),
        (tuple([5] * (MAX_LEN - 3)), {"max_tokens": None}, FinishReason.LENGTH, None),
    ],
)
def test_resuming_what_had_ended(
    emitted: tuple[int, ...], params: dict[str, Any], finish: FinishReason, stop: int | None
) -> None:
    with running() as engine:
        caller = Caller()
        made = request(**params)
        engine.submit(
            Request(id="r", prompt=made.prompt, params=made.params, emitted=emitted), caller.sink
        )
        caller.wait(1)
        (update,) = caller.updates
        assert (update.tokens, update.finish, update.stop_reason) == ((), finish, stop)


def test_code_cannot_go_to_other_ranks() -> None:
    params = SamplingParams(logits_processors=[lambda ids, row: row])
    with (
        running(tensor_parallel_size=2) as engine,
        pytest.raises(InvalidRequest, match="2 ranks compute in others; use logit_bias"),
    ):
        engine.submit(Request(id="r", prompt=(5,), params=params), Caller().sink)


def test_a_full_queue() -> None:
    executor = Executor()
    with running(executor, max_num_seqs=1, max_waiting=2) as engine:
        caller = Caller()
        executor.gate.clear()
        engine.submit(request("a"), caller.sink)
        assert executor.waiting.wait(60)
        engine.submit(request("b"), caller.sink)
        engine.submit(request("c"), caller.sink)
        with pytest.raises(Overloaded, match="at most 2 may"):
            engine.submit(request("d"), caller.sink)
        assert engine.load().waiting == 2
        engine.abort("b")
        executor.gate.set()
        caller.wait(2)
        engine.submit(request("d"), caller.sink)
        caller.wait(3)


def test_a_burst_at_an_idle_engine_is_not_waiting() -> None:
    executor = Executor()
    executor.gate.clear()
    with running(executor, max_num_seqs=8, max_waiting=1) as engine:
        caller = Caller()
        for i in range(9):
            engine.submit(request(str(i)), caller.sink)
        executor.gate.set()
        caller.wait(9)


@pytest.mark.parametrize(
    ("made", "error", "message"),
    [
        (request(prompt=()), InvalidRequest, "at least one token"),
        (request(prompt=(1, VOCAB)), InvalidRequest, "ids of this model are 0 to 49"),
        (request(prompt=(-1,)), InvalidRequest, "token id -1"),
        (request(logprobs=21), InvalidRequest, "between 0 and 20"),
        (request(prompt_logprobs=-1), InvalidRequest, "between 0 and 20"),
        (request(logit_bias={50: 1.0}), InvalidRequest, "logit_bias holds the token id 50"),
        (request(allowed_token_ids=[3, 99]), InvalidRequest, "allowed_token_ids"),
        (request(bad_words=["x"]), InvalidRequest, "bad_words_ids"),
        (request(prompt=(1,) * 65), ContextTooLong, "maximum context length is 64 tokens"),
        (request(prompt=(1,) * 64), ContextTooLong, "contains 64 input tokens"),
        (
            Request(id="r", prompt=(1,), emitted=(2,), params=SamplingParams(n=2)),
            InvalidRequest,
            "resumed with n=1",
        ),
        (Request(id="r", prompt=(1,), adapter="a"), InvalidRequest, "not built yet"),
        (request(prompt=(1.0,)), InvalidRequest, "prompt must hold token ids only"),  # type: ignore[arg-type]
        (request(prompt=(2**70,)), InvalidRequest, "prompt must hold token ids only"),
        (request(bad_words_ids=[[1, VOCAB]]), InvalidRequest, "bad_words holds the token id 50"),
        (Request(id="r", prompt=(1,), priority="x"), InvalidRequest, "priority"),  # type: ignore[arg-type]
        (Request(id="r", prompt=(1,) * 8, keys=(b"k" * 16,)), InvalidRequest, "2 full blocks of 4"),
        (Request(id="r", prompt=(1,) * 4, keys=(b"k",)), InvalidRequest, "one of 16 bytes"),
    ],
)
def test_refusals(made: Request, error: type[Exception], message: str) -> None:
    with running() as engine:
        with pytest.raises(error, match=message):
            engine.submit(made, Caller().sink)
        assert not engine.load().waiting


def test_any_text_parts_the_prefix_cache() -> None:
    """Half a surrogate pair too, which UTF-8 cannot hold."""
    with running() as engine:
        for salt in ("\ud800", "", "\ud800"):
            caller = Caller()
            made = request(prompt=(1, 2, 3, 4, 5))
            engine.submit(
                Request(id="r", prompt=made.prompt, params=made.params, cache_salt=salt),
                caller.sink,
            )
            caller.wait(1)
            assert caller.updates[-1].error is None
        assert caller.updates[0].num_cached == 4


def test_keys_from_the_door_are_those_of_the_engine() -> None:
    prompt = (1, 2, 3, 4, 5)
    keys = tuple(chained_keys(root_key(None, "s"), prompt, 4))
    with running() as engine:
        for sent, cached in ((keys, 0), ((), 4), (keys, 4)):
            caller = Caller()
            params = request(prompt=prompt).params
            made = Request(id="r", prompt=prompt, params=params, cache_salt="s", keys=sent)
            engine.submit(made, caller.sink)
            caller.wait(1)
            assert caller.updates[0].num_cached == cached


def test_room_for_output() -> None:
    assert room_for_output(10, None, 64) == 54
    assert room_for_output(10, 54, 64) == 54
    assert room_for_output(63, None, 64) == 1
    assert room_for_output(63, 0, 64) == 0


def test_no_max_tokens_means_up_to_the_context() -> None:
    with running() as engine:
        caller = Caller()
        engine.submit(request(prompt=(1, 2), max_tokens=None), caller.sink)
        caller.wait(1)
        assert len(caller.tokens("r")) == MAX_LEN - 2
        assert caller.updates[-1].finish is FinishReason.LENGTH


def test_seeds() -> None:
    first, again, other = Seeds(1), Seeds(1), Seeds(2)
    drawn = [first.draw() for _ in range(5)]
    assert drawn == [again.draw() for _ in range(5)] != [other.draw() for _ in range(5)]
    assert len(set(drawn)) == 5
    of_two = [[Seeds(1, name).draw() for _ in range(5)] for name in ("a", "b")]
    assert not set(drawn) & {*of_two[0], *of_two[1]} and not set(of_two[0]) & set(of_two[1])
    given = request(seed=0)
    assert first.give(given) is given
    assert first.give(request(seed=None)).params.seed is not None
    with running(seed=3) as one, running(seed=3) as two:
        texts = []
        for engine in (one, two):
            caller = Caller()
            engine.submit(request(seed=None), caller.sink)
            caller.wait(1)
            texts.append(caller.tokens("r"))
        assert texts[0] == texts[1]
