"""What is asked: lengths, shared beginnings, files."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from shoal.cluster.bench import unread
from shoal.cluster.bench.datasets import DATASETS, Dataset
from shoal.cluster.bench.lengths import around, sharegpt
from shoal.cluster.bench.options import DATA
from shoal.cluster.bench.talks import Conversation, Form
from shoal.cluster.bench.vocabulary import vocabulary_size
from shoal.engine.errors import ConfigError


def ids(made: list[Conversation]) -> list[tuple[int, ...]]:
    return [conversation.turns[0].ids for conversation in made]


def test_prompts_are_drawn_from_the_seed_alone() -> None:
    data = Dataset(input_len=4, prefix_len=2, seed=3)
    first = ids(data.conversations(5, 100, "a"))
    assert first == ids(data.conversations(5, 100, "a"))
    assert first != ids(data.conversations(5, 100, "b"))
    both = first + ids(data.conversations(5, 100, "b"))
    assert len({prompt[:2] for prompt in both}) == 1 and {len(p) for p in both} == {6}
    assert ids(Dataset(input_len=6).conversations(1, 2, "a")) == [(1,) * 6]


def test_lengths_vary_within_the_ratio() -> None:
    data = Dataset(input_len=100, output_len=10, range_ratio=0.3)
    made = data.conversations(400, 1000, "a")
    lengths = [len(prompt) for prompt in ids(made)]
    assert (min(lengths), max(lengths)) == (70, 130)
    assert {c.turns[0].output_len for c in made} == set(range(7, 14))
    assert around(Random(0), 1, 0.9) >= 1


def test_chats_are_as_long_as_the_paper_says() -> None:
    random = Random(7)
    drawn = [sharegpt(random) for _ in range(20_000)]
    assert statistics.fmean(lengths.input for lengths in drawn) == pytest.approx(161, rel=0.03)
    assert statistics.fmean(lengths.output for lengths in drawn) == pytest.approx(338, rel=0.03)
    assert max(map(sum, drawn)) <= 2048 and min(lengths.input for lengths in drawn) >= 4
    fixed = Dataset(name="sharegpt", fixed_output_len=7).conversations(20, 500, "a")
    assert {c.turns[0].output_len for c in fixed} == {7}


def test_prefixes_take_turns() -> None:
    data = Dataset(name="prefix_repetition", input_len=3, prefix_len=5, num_prefixes=4)
    made = ids(data.conversations(12, 5000, "a"))
    heads = [prompt[:5] for prompt in made]
    assert len(set(heads)) == 4 and heads[:4] == heads[4:8]
    assert len({prompt[5:] for prompt in made}) == 12


def test_a_file_of_chats(tmp_path: Path) -> None:
    chats = [
        {"conversations": [{"from": "human", "value": f"question {i}"}, {"value": "word " * 8}]}
        for i in range(3)
    ]
    chats.append({"conversations": [{"from": "human", "value": "left alone"}]})
    file = tmp_path / "chats.json"
    file.write_text(json.dumps(chats))
    data = Dataset(name="sharegpt", path=file, shuffle=False)
    made = data.conversations(5, 100, "a")
    texts = [conversation.turns[0].text for conversation in made]
    assert texts == ["question 0", "question 1", "question 2", "question 0", "question 1"]
    assert made[0].turns[0].output_len == 10
    counted = data.conversations(1, 100, "a", lambda text: len(text.split()))
    assert counted[0].turns[0].output_len == 8
    drawn = Dataset(name="sharegpt", path=file, seed=1).conversations(3, 100, "a")
    assert {conversation.turns[0].text for conversation in drawn} == set(texts)


@pytest.mark.parametrize("shuffle", [False, True])
def test_rows_are_taken_on_from_the_last(tmp_path: Path, shuffle: bool) -> None:
    file = tmp_path / "lines.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": f"row {i}"}) for i in range(7)))
    data = Dataset(name="custom", path=file, shuffle=shuffle, seed=4)
    made = [
        conversation.turns[0].text
        for stream, num, taken in (("a", 2, 0), ("b", 3, 2), ("c", 4, 5))
        for conversation in data.conversations(num, 100, stream, taken=taken)
    ]
    assert len(set(made[:7])) == 7 and made[7:] == made[:2]


def test_lines_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "lines.jsonl"
    rows = [{"prompt": "one", "output_tokens": 3}, {"prompt": [5, 6]}, {"other": 1}]
    file.write_text("\n".join(map(json.dumps, rows)))
    first, second = Dataset(name="custom", path=file, shuffle=False, output_len=9).conversations(
        2, 100, "a"
    )
    assert (first.turns[0].text, first.turns[0].output_len) == ("one", 3)
    assert (second.turns[0].ids, second.turns[0].output_len) == ((5, 6), 9)
    file.write_text('{"other": 1}')
    with pytest.raises(ConfigError, match="nothing that can be asked"):
        Dataset(name="custom", path=file).conversations(1, 100, "a")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"prompt": "a"}\nno', "line 2: no JSON"),
        ("[1]", "line 1: expected a JSON object, got [1]"),
        ('{"prompt": ["a"]}', 'expected a prompt of text or of token ids, got ["a"]'),
        ('{"prompt": [-1]}', "expected a prompt of text or of token ids, got [-1]"),
        ('{"prompt": {"a": 1}}', "expected a prompt of text or of token ids"),
        ('{"prompt": "a", "output_tokens": "x"}', "expected output_tokens of at least 1"),
        ('{"prompt": "a", "output_tokens": 0}', "expected output_tokens of at least 1, got 0"),
    ],
)
def test_a_line_that_cannot_be_asked_is_named(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "lines.jsonl"
    file.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(said)):
        Dataset(name="custom", path=file).conversations(1, 100, "a")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"no", "no JSON"),
        (b"\xff\xfe", "no UTF-8"),
        (b'{"a": 1}', "expected a list of chats, got"),
        (b"[{}, 2]", "chat 2: expected a JSON object, got 2"),
        (b'[{"messages": ["hi"]}]', "chat 1: expected a JSON object, got"),
        (b'[{"messages": "hi"}]', "expected a list of what was said"),
        (b"[{}]", "nothing that can be asked"),
    ],
)
def test_a_chat_that_cannot_be_asked_is_named(tmp_path: Path, text: bytes, said: str) -> None:
    file = tmp_path / "chats.json"
    file.write_bytes(text)
    for name in ("sharegpt", "multi_turn"):
        with pytest.raises(ConfigError, match=re.escape(said)):
            Dataset(name=name, path=file).conversations(1, 100, "a")


def test_only_what_shapes_the_prompts_is_told(tmp_path: Path) -> None:
    assert set(Dataset().told()) == {"input_len", "output_len", "prefix_len", "range_ratio", "seed"}
    chats = Dataset(name="sharegpt").told()
    assert "input_len" not in chats and "num_turns" not in chats
    assert Dataset(name="multi_turn").told()["num_turns"] == 4
    told = Dataset(name="custom", path=tmp_path / "x").told()
    assert told["path"] == str(tmp_path / "x") and "input_len" not in told


def talk_of(path: str, conversation: Conversation, answer: Callable[[int], str]) -> list[object]:
    form = Form(model="m", path=path)
    talk = form.talk(form.spelled(conversation, lambda ids: " ".join(map(str, ids))))
    bodies, ask = [], next(talk, None)
    while ask is not None:
        bodies.append(json.loads(ask.body))
        try:
            ask = talk.send(answer(len(bodies)))
        except StopIteration:
            ask = None
    return bodies


def test_completions_of_a_chat_are_text() -> None:
    data = Dataset(name="multi_turn", input_len=2, num_turns=3, seed=5)
    chat = max(data.conversations(8, 50, "a"), key=lambda c: len(c.turns))
    prompts = [b["prompt"] for b in talk_of("/v1/completions", chat, "answer {}".format)]  # type: ignore[index]
    assert len(prompts) == len(chat.turns) > 1
    assert prompts[1].startswith(prompts[0] + "\nanswer 1\n")


def test_the_vocabulary_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text('{"text_config": {"vocab_size": 77}}')
    assert vocabulary_size({}, 9) == 9
    assert vocabulary_size({"vocab_size": 5}, str(tmp_path)) == 77
    assert vocabulary_size({"vocab_size": 5}, None) == 5
    assert vocabulary_size({"root": str(tmp_path)}, None) == 77
    assert vocabulary_size({"root": "org/name"}, None) is None
    monkeypatch.chdir(tmp_path)
    assert vocabulary_size({"root": ""}, None) is None
    assert vocabulary_size({}, None) is None


def test_some_data_set_reads_every_flag() -> None:
    tables = (unread._READ, unread._READ_WITH_FILE)
    read = {name for table in tables for names in table.values() for name in names}
    assert read.isdisjoint(unread._ALWAYS)
    assert read.union(unread._ALWAYS) == {option.name for option in DATA}
    assert {name for table in tables for name in table} == set(DATASETS)
