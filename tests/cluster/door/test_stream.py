"""A generation as a thing that can go on elsewhere."""

import pytest
from shoal.cluster.stream import Generation
from shoal.engine.request import FinishReason, Request, SamplingParams, Update


class Deaf:
    """A link that only remembers."""

    def __init__(self, card):
        self.card, self.sent, self.aborted = card, [], []

    def submit(self, request, on_update):
        self.sent.append(request)
        self.on_update = on_update

    def abort(self, request_id, sibling=None, reason=FinishReason.ABORT):
        self.aborted.append((request_id, sibling))


@pytest.fixture
def begun(tokenizer, card):
    def begin(**fields):
        deltas, errors = [], []
        params = SamplingParams(seed=7, max_tokens=50, **fields)
        generation = Generation(
            Request(id="r", prompt=(5, 6), params=params),
            tokenizer,
            on_delta=lambda generation, choice, delta: deltas.append((choice.sibling, delta)),
            on_error=errors.append,
        )
        link = Deaf(card)
        generation.begin(link)
        return generation, link, deltas, errors

    return begin


def test_what_is_left_of_a_generation_can_be_asked_for_again(begun, tokenizer):
    generation, link, _, _ = begun(n=2)
    first, second = tokenizer.encode("hello"), tokenizer.encode("world")
    for token in first:
        link.on_update(Update("r", 0, (token,)))
    for token in second:
        link.on_update(Update("r", 1, (token,)))
    request = generation.remainder(generation.choices[1])
    assert (request.id, request.prompt, request.sibling) == ("r", (5, 6), 1)
    assert request.emitted == tuple(second)
    assert (request.params.n, request.params.seed, request.params.max_tokens) == (1, 7, 50)
    assert request.epoch == 1
    assert generation.digest == link.card.digest


def test_beams_are_asked_for_again_all_together(begun):
    generation, _, _, _ = begun(n=2, best_of=3, use_beam_search=True, temperature=0)
    left = [generation.remainder(choice) for choice in generation.choices]
    assert left[0] == left[1]
    assert left[0].params == generation.request.params and left[0].params.n == 2
    assert (left[0].emitted, left[0].sibling, left[0].epoch) == ((), 0, 1)


def test_an_older_epoch_is_not_heard(begun, tokenizer):
    generation, link, deltas, _ = begun()
    generation.epoch = 1
    link.on_update(Update("r", 0, (tokenizer.encode("a")[0],)))
    assert not deltas
    link.on_update(Update("r", 0, (tokenizer.encode("b")[0],), epoch=1))
    assert [delta.text for _, delta in deltas] == ["b"]


def test_tokens_wait_with_their_text(begun, tokenizer):
    _, link, deltas, _ = begun(stop=["world"])
    ids = tokenizer.encode("hello woo")
    for token in ids[:-1]:
        link.on_update(Update("r", 0, (token,)))
    link.on_update(Update("r", 0, (ids[-1],), finish=FinishReason.LENGTH))
    assert "".join(delta.text for _, delta in deltas) == "hello woo"
    assert [token for _, delta in deltas for token in delta.tokens] == ids
    assert all(delta.text for _, delta in deltas)


def test_several_tokens_in_one_update(begun, tokenizer):
    generation, link, deltas, _ = begun(stop=["wor"])
    ids = tuple(tokenizer.encode("hello world again"))
    link.on_update(Update("r", 0, ids, num_cached=1))
    (_, delta), choice = deltas[0], generation.choices[0]
    assert delta.text == "hello "
    assert delta.finish is FinishReason.STOP
    assert choice.num_tokens == len(delta.tokens) < len(ids)
    assert link.aborted == [("r", 0)]
    assert generation.ended


def test_nothing_is_heard_after_an_abort(begun, tokenizer):
    generation, link, deltas, errors = begun()
    generation.abort()
    generation.abort()
    link.on_update(Update("r", 0, tuple(tokenizer.encode("a"))))
    assert link.aborted == [("r", None)]
    assert not deltas
    assert not errors


def test_an_update_that_cannot_be_answered_ends_this_request_alone(begun, tokenizer):
    generation, link, _, errors = begun()

    def fail(*_):
        raise RuntimeError("a bug")

    generation._on_delta = fail
    link.on_update(Update("r", 0, tuple(tokenizer.encode("a"))))
    assert "internal error" in str(errors[0])
    assert link.aborted == [("r", None)]
