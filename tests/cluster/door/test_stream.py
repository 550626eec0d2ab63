"""A generation's updates as text; one whose state was stored goes on where it stood."""

import pickle

import pytest
from shoal.cluster.state import new_state
from shoal.cluster.stream import Generation
from shoal.engine.request import FinishReason, Request, SamplingParams, TokenLogprobs, Update


@pytest.fixture
def begun(tokenizer):
    def begin(state=None, **fields):
        deltas, errors = [], []
        params = SamplingParams(seed=7, max_tokens=50, **fields)
        generation = Generation(
            state or new_state(Request(id="r", prompt=(5, 6), params=params), "m"),
            tokenizer,
            on_delta=lambda generation, choice, delta: deltas.append((choice.sibling, delta)),
            on_error=errors.append,
        )
        return generation, deltas, errors

    return begin


def test_what_is_left_of_a_generation_can_be_asked_for_again(begun, tokenizer):
    generation, _, _ = begun(n=2, prompt_logprobs=1)
    words = tokenizer.encode("hello"), tokenizer.encode("world")
    for choice, word in zip(generation.choices, words, strict=True):
        for token in word:
            generation.take(choice, Update("r", choice.sibling, (token,)))
        choice.epoch += 1
    first, second = map(generation.state.remainder, generation.choices)
    assert (second.id, second.prompt, second.sibling) == ("r", (5, 6), 1)
    assert second.emitted == tuple(words[1])
    assert (second.params.n, second.params.seed, second.params.max_tokens) == (1, 7, 50)
    assert second.epoch == 1
    assert (first.params.prompt_logprobs, second.params.prompt_logprobs) == (1, None)
    generation.state.prompt_logprobs = (None, TokenLogprobs(-1.0, 1))
    assert generation.state.remainder(generation.choices[0]).params.prompt_logprobs is None


def test_beams_are_asked_for_again_all_together(begun):
    generation, _, _ = begun(n=2, best_of=3, use_beam_search=True, temperature=0)
    left = [generation.state.remainder(choice) for choice in generation.choices]
    assert left[0] == left[1]
    assert left[0].params == generation.request.params and left[0].params.n == 2
    assert (left[0].emitted, left[0].sibling) == ((), 0)


@pytest.mark.parametrize("cut", range(12))
def test_a_stored_state_goes_on_byte_for_byte(begun, tokenizer, cut):
    ids = tokenizer.encode("hé wor wo 日本 world again")
    updates = [
        Update("r", 0, (id,), (TokenLogprobs(-0.5, i + 1),), num_cached=None if i else 2)
        for i, id in enumerate(ids)
    ]
    fields = {"stop": ["world"], "logprobs": 0}
    whole, expected, _ = begun(**fields)
    for update in updates:
        whole.take(whole.choices[0], update)
        if whole.ended:
            break
    assert whole.choices[0].stop_reason == "world"
    first, told, _ = begun(**fields)
    for update in updates[:cut]:
        first.take(first.choices[0], update)
    second, rest, _ = begun(pickle.loads(pickle.dumps(first.state)))
    for update in updates[cut:]:
        if not second.ended:
            second.take(second.choices[0], update)
    assert told + rest == expected
    for name in ("num_tokens", "cumulative", "finish", "stop_reason", "emitted"):
        assert getattr(second.choices[0], name) == getattr(whole.choices[0], name)
    assert second.state.num_cached == 2


def test_tokens_wait_with_their_text(begun, tokenizer):
    generation, deltas, _ = begun(stop=["world"])
    (choice,) = generation.choices
    ids = tokenizer.encode("hello woo")
    for token in ids[:-1]:
        generation.take(choice, Update("r", 0, (token,)))
    generation.take(choice, Update("r", 0, (ids[-1],), finish=FinishReason.LENGTH))
    assert "".join(delta.text for _, delta in deltas) == "hello woo"
    assert [token for _, delta in deltas for token in delta.tokens] == ids
    assert all(delta.text for _, delta in deltas)


def test_several_tokens_in_one_update(begun, tokenizer):
    generation, deltas, _ = begun(stop=["wor"])
    (choice,) = generation.choices
    ids = tuple(tokenizer.encode("hello world again"))
    generation.take(choice, Update("r", 0, ids, num_cached=1))
    ((_, delta),) = deltas
    assert delta.text == "hello "
    assert delta.finish is FinishReason.STOP
    assert choice.num_tokens == len(delta.tokens) < len(ids)
    assert generation.ended


@pytest.mark.parametrize("finish", [None, FinishReason.LENGTH])
def test_an_update_that_cannot_be_answered_ends_this_request_alone(begun, tokenizer, finish):
    generation, _, errors = begun()

    def fail(*_):
        raise RuntimeError("a bug")

    generation._on_delta = fail
    update = Update("r", 0, tuple(tokenizer.encode("a")), finish=finish)
    generation.take(generation.choices[0], update)
    assert "internal error" in str(errors[0])
    assert generation.ended
