"""Text as it comes: held against the plain decode, and up to the first stop string."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shoal.engine.request import FinishReason, SamplingParams, Update
from shoal.engine.text import TextStream
from shoal.engine.text import Tokenizer as Text

from .vocabularies import NAMES, end_of_word, save


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data(), ids=st.lists(st.integers(0, 420), max_size=40), skip=st.booleans())
@settings(max_examples=100, deadline=None)
def test_a_stream_is_the_plain_decode(
    loaded: dict[str, Text], name: str, data: st.DataObject, ids: list[int], skip: bool
) -> None:
    tokenizer = loaded[name]
    params = SamplingParams(skip_special_tokens=skip)
    cut = data.draw(st.integers(0, len(ids)))
    whole = TextStream(tokenizer, params)
    pieces = [whole.push((id,)) for id in ids[:cut]]
    resumed = TextStream(tokenizer, params, emitted=ids[:cut])
    assert resumed.text == "".join(pieces)
    rest = whole.push(ids[cut:], last=True)
    assert resumed.push(ids[cut:], last=True) == rest
    assert "".join(pieces) + rest == whole.text == tokenizer.decode(ids, skip)
    assert whole.num_tokens == len(ids)


def test_never_half_a_character(loaded: dict[str, Text]) -> None:
    for name in ("bytes", "stripped", "llama"):
        tokenizer = loaded[name]
        text = "naïve 🦀🦀 中"
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert any("�" in tokenizer.token_text(id) for id in ids)
        stream = TextStream(tokenizer, SamplingParams())
        pieces = [stream.push((id,)) for id in ids]
        assert "�" not in "".join(pieces)
        assert "".join(pieces) + stream.push((), last=True) == text
        crab = tokenizer.encode("🦀", add_special_tokens=False)
        cut = TextStream(tokenizer, SamplingParams())
        assert cut.push(crab[:-1]).strip() == ""
        assert cut.push((), last=True) == "�"


def test_text_goes_on_after_the_prompt(loaded: dict[str, Text]) -> None:
    tokenizer = loaded["stripped"]
    prompt = tokenizer.encode("The quick")
    more = tokenizer.encode("brown fox", add_special_tokens=False)
    assert TextStream(tokenizer, SamplingParams()).push(more, last=True) == "brown fox"
    after = TextStream(tokenizer, SamplingParams(), prompt=prompt)
    assert after.push(more, last=True) == " brown fox"
    only_bos = TextStream(tokenizer, SamplingParams(), prompt=[1])
    assert only_bos.push(more, last=True) == "brown fox"


def test_a_character_begun_in_the_prompt(loaded: dict[str, Text]) -> None:
    tokenizer = loaded["bytes"]
    ids = tokenizer.encode("🦀")
    stream = TextStream(tokenizer, SamplingParams(), prompt=ids[:2])
    assert stream.push(ids[2:]) == "🦀"


def stream_of(
    tokenizer: Text, text: str, rng: random.Random, **params: Any
) -> tuple[str, TextStream]:
    """`text` pushed in random handfuls, with the invariant that nothing shown is taken back."""
    stream = TextStream(tokenizer, SamplingParams(**params))
    ids = tokenizer.encode(text, add_special_tokens=False)
    shown, at = "", 0
    while at < len(ids) and stream.stopped is None:
        step = rng.randint(1, 3)
        shown += stream.push(ids[at : at + step], last=at + step >= len(ids))
        assert shown == stream.text
        at += step
    return shown, stream


def first_end(text: str, stops: list[str]) -> tuple[int, str] | None:
    """The reference: go character by character, the longest stop that ends there wins."""
    for end in range(1, len(text) + 1):
        for stop in sorted(stops, key=len, reverse=True):
            if text[:end].endswith(stop):
                return end, stop
    return None


@given(
    text=st.text("abcdé ", max_size=40),
    stops=st.lists(st.text("abcdé ", min_size=1, max_size=5), min_size=1, max_size=4),
    include=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=400, deadline=None)
def test_stop_strings(
    loaded: dict[str, Text], text: str, stops: list[str], include: bool, seed: int
) -> None:
    shown, stream = stream_of(
        loaded["bytes"],
        text,
        random.Random(seed),
        stop=stops,
        include_stop_str_in_output=include,
    )
    found = first_end(text, stops)
    if found is None:
        assert (shown, stream.stopped) == (text, None)
    else:
        end, stop = found
        assert stream.stopped == stop
        assert shown == text[: end if include else end - len(stop)]


def test_a_stop_string_never_leaks_its_beginning(loaded: dict[str, Text]) -> None:
    tokenizer = loaded["bytes"]
    stream = TextStream(tokenizer, SamplingParams(stop=["END"]))
    ids = [tokenizer.encode(char)[0] for char in "aEbENcENDtail"]
    pieces = [stream.push((id,)) for id in ids]
    assert pieces == ["a", "", "Eb", "", "", "ENc", "", "", "", "", "", "", ""]
    assert stream.stopped == "END" and stream.text == "aEbENc"
    assert stream.num_tokens == 9


def test_no_stop_string_before_min_tokens(loaded: dict[str, Text]) -> None:
    tokenizer = loaded["bytes"]
    ids = [tokenizer.encode(char)[0] for char in "ENDxEND!"]
    stream = TextStream(tokenizer, SamplingParams(stop="END", min_tokens=3))
    assert stream.push(ids, last=True) == "ENDx" and stream.num_tokens == 7
    assert TextStream(tokenizer, SamplingParams(stop="END", min_tokens=2)).push(ids) == ""


def test_resuming_amid_a_stop_string(loaded: dict[str, Text]) -> None:
    tokenizer = loaded["bytes"]
    ids = [tokenizer.encode(char)[0] for char in "xyENDz"]
    params = SamplingParams(stop="END")
    for cut in range(5):
        before = TextStream(tokenizer, params)
        shown = "".join(before.push((id,)) for id in ids[:cut])
        after = TextStream(tokenizer, params, emitted=ids[:cut])
        assert after.text == shown and after.num_tokens == cut
        assert shown + after.push(ids[cut:]) == "xy"
        assert after.stopped == "END" and after.num_tokens == 5


def test_a_stop_token_is_no_text(loaded: dict[str, Text]) -> None:
    tokenizer = loaded["bytes"]
    ids = tuple(tokenizer.encode("word stop"))
    end = Update("r", 0, ids, finish=FinishReason.STOP)
    assert TextStream(tokenizer, SamplingParams()).take(end) == tokenizer.decode(ids[:-1])
    kept = SamplingParams(include_stop_str_in_output=True)
    assert TextStream(tokenizer, kept).take(end) == "word stop"
    length = end._replace(finish=FinishReason.LENGTH)
    assert TextStream(tokenizer, SamplingParams()).take(length) == "word stop"


def test_without_detokenizing_there_is_no_text(loaded: dict[str, Text]) -> None:
    stream = TextStream(loaded["bytes"], SamplingParams(detokenize=False))
    assert stream.push([70, 71], last=True) == "" == stream.text
    assert stream.num_tokens == 2


def test_spaces_between_special_tokens(tmp_path: Path) -> None:
    made = end_of_word()
    made.decoder = None
    made.add_special_tokens(["<a>", "<b>"])
    tokenizer = Text.load(str(save(made, tmp_path)))
    a, b = (tokenizer.encode(text, add_special_tokens=False)[0] for text in ("<a>", "<b>"))
    for spaces, text in ((True, "<a> <b> <a>"), (False, "<a><b><a>")):
        params = SamplingParams(skip_special_tokens=False, spaces_between_special_tokens=spaces)
        stream = TextStream(tokenizer, params)
        assert "".join(stream.push((id,)) for id in (a, b, a)) + stream.push((), True) == text


def test_cost_is_linear(loaded: dict[str, Text]) -> None:
    calls = 0
    stream = TextStream(loaded["words"], SamplingParams())
    decode = stream._decoder._decode  # type: ignore[union-attr]

    def counted(ids: list[int]) -> str:
        nonlocal calls
        calls += len(ids)
        return decode(ids)

    stream._decoder._decode = counted  # type: ignore[union-attr]
    for id in range(1000):
        stream.push((3 + id % 190,))
    assert calls < 30 * 1000
