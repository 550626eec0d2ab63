"""Ids of text and text of ids, held against transformers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shoal.engine.errors import ConfigError, InvalidRequest, LoadError
from shoal.engine.request import SamplingParams
from shoal.engine.text import TextStream, with_bad_words
from shoal.engine.text import Tokenizer as Text
from transformers import AutoTokenizer

from .vocabularies import BYTES, CORPUS, NAMES, byte_level, save

TEXTS = [
    *CORPUS[:4],
    "",
    " ",
    "a",
    " leading",
    "trailing ",
    "<s>in</s> text",
    "x<|im_end|>\n",
    "🦀",
]
PARALLEL = "TOKENIZERS_PARALLELISM"


@pytest.mark.parametrize("name", NAMES)
def test_encodes_as_transformers_does(
    name: str, folders: dict[str, Path], loaded: dict[str, Text]
) -> None:
    theirs = AutoTokenizer.from_pretrained(str(folders[name]))
    assert loaded[name].vocab_size == len(theirs)
    for text in TEXTS:
        for special in (True, False):
            ours = loaded[name].encode(text, add_special_tokens=special)
            assert ours == theirs.encode(text, add_special_tokens=special), (text, special)


@pytest.mark.parametrize("name", NAMES)
def test_decodes_as_transformers_does(
    name: str, folders: dict[str, Path], loaded: dict[str, Text]
) -> None:
    theirs = AutoTokenizer.from_pretrained(str(folders[name]))
    for text in TEXTS:
        ids = loaded[name].encode(text)
        for skip in (True, False):
            wanted = theirs.decode(ids, skip_special_tokens=skip)
            assert loaded[name].decode(ids, skip_special_tokens=skip) == wanted


def ids_of(name: str) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, 420), max_size=40)


def well_formed_runs(tokenizer: Text, ids: list[int]) -> bool:
    """Whether every run of byte pieces is UTF-8: transformers spoils the whole run otherwise."""
    run = b""
    for id in [*ids, -1]:
        piece = tokenizer._backend.id_to_token(id) if id >= 0 else None
        if piece in BYTES:
            run += bytes([BYTES.index(piece)])
        elif piece is not None or id < 0:
            try:
                run.decode()
            except UnicodeDecodeError:
                return False
            run = b""
    return True


@given(ids=ids_of("bytes"), skip=st.booleans())
@settings(max_examples=300, deadline=None)
def test_byte_level_decode_of_any_ids(loaded: dict[str, Text], ids: list[int], skip: bool) -> None:
    tokenizer = loaded["bytes"]
    assert tokenizer.decode(ids, skip) == tokenizer._backend.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("name", ["stripped", "spaced", "llama"])
@given(parts=st.lists(st.one_of(st.integers(259, 420), st.characters(codec="utf-8")), max_size=20))
@settings(max_examples=150, deadline=None)
def test_byte_fallback_decode_of_well_formed_ids(
    loaded: dict[str, Text], name: str, parts: list[int | str]
) -> None:
    tokenizer = loaded[name]
    ids: list[int] = []
    for part in parts:
        ids += [part] if isinstance(part, int) else [3 + byte for byte in part.encode()]
    if well_formed_runs(tokenizer, ids):
        assert tokenizer.decode(ids) == tokenizer._backend.decode(ids)


@pytest.mark.parametrize("name", ["words", "metaspace"])
@given(ids=st.lists(st.integers(0, 199), max_size=30))
@settings(max_examples=150, deadline=None)
def test_decode_by_window_is_the_plain_decode(
    loaded: dict[str, Text], name: str, ids: list[int]
) -> None:
    tokenizer = loaded[name]
    assert tokenizer.decode(ids) == tokenizer._backend.decode(ids)


@pytest.mark.parametrize("name", NAMES)
def test_token_bytes_join_to_the_text(name: str, loaded: dict[str, Text]) -> None:
    tokenizer = loaded[name]
    known = name in ("words", "metaspace")
    for text in ("The quick brown fox", "word stop" if known else "Größe 🙂"):
        ids = tokenizer.encode(text, add_special_tokens=False)
        joined = b"".join(tokenizer.token_bytes(id) for id in ids)
        if known:
            assert joined.decode() == text.replace(" ", "")
        else:
            assert joined.decode().lstrip(" ") == text
    assert tokenizer.token_bytes(10_000) == b"" == tokenizer.token_text(10_000).encode()
    assert tokenizer.token_text(tokenizer.encode("</s>", add_special_tokens=False)[-1]) == "</s>"


@pytest.mark.parametrize("name", ["bytes", "stripped", "llama"])
def test_bad_words_with_and_without_a_space(name: str, loaded: dict[str, Text]) -> None:
    tokenizer = loaded[name]
    ids = with_bad_words(tokenizer, SamplingParams(bad_words=["word", " zebra"])).bad_words_ids
    for word in ("word", " word", "zebra", " zebra"):
        assert tuple(tokenizer.encode(word, add_special_tokens=False)) in ids
    assert len(ids) == len(set(ids))
    if name == "bytes":
        assert len(ids) == 4 and len({len(i) for i in ids}) > 1
    plain = SamplingParams()
    assert with_bad_words(tokenizer, plain) is plain


def test_a_lone_surrogate_is_refused(loaded: dict[str, Text]) -> None:
    with pytest.raises(InvalidRequest, match="Unicode"):
        loaded["bytes"].encode("half \ud83d")


def test_other_threads_run_while_a_long_text_is_tokenized(loaded: dict[str, Text]) -> None:
    text, tokenizing, seen = "The quick brown fox. " * 10_000, False, threading.Event()

    def look() -> None:
        while not seen.is_set():
            if tokenizing:
                seen.set()
            time.sleep(0)

    before = sys.getswitchinterval()
    sys.setswitchinterval(60)  # no thread gets its turn but by another one's leave
    looking = threading.Thread(target=look)
    looking.start()
    try:
        for _ in range(100):
            tokenizing = True
            loaded["bytes"].encode(text)
            tokenizing = False
            if seen.is_set():
                break
        assert seen.is_set()
    finally:
        seen.set()
        sys.setswitchinterval(before)
        looking.join()


@pytest.mark.parametrize(("asked", "started"), [({}, "0 0"), ({PARALLEL: "true"}, "0 2")])
def test_no_threads_are_started_but_for_who_asks(
    folders: dict[str, Path], asked: dict[str, str], started: str
) -> None:
    script = (
        "import os\n"
        "from shoal.engine.text import LONG, Tokenizer\n"
        f"tokenizer, found = Tokenizer.load({str(folders['bytes'])!r}), []\n"
        "for times in (0, 1, LONG):\n"
        "    tokenizer.encode('word ' * times)\n"
        "    found.append(len(os.listdir('/proc/self/task')))\n"
        "print(found[1] - found[0], found[2] - found[0])\n"
    )
    env = {name: value for name, value in os.environ.items() if name != PARALLEL}
    env |= {"RAYON_NUM_THREADS": "2", **asked}
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env)
    assert ran.stdout.strip() == started, ran.stderr


def test_special_tokens_named_only_beside_the_tokenizer(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    made = json.loads((folders["bytes"] / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(made))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": {"__type": "AddedToken", "content": "<s>", "lstrip": False},
                "eos_token": "<|new|>",
                "pad_token": "<think>",
                "additional_special_tokens": ["<|extra|>"],
            }
        )
    )
    ours, theirs = Text.load(str(tmp_path)), AutoTokenizer.from_pretrained(str(tmp_path))
    text = "a <|new|> b <|extra|> c <think> d"
    ids = ours.encode(text)
    assert ids == theirs.encode(text)
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert ours.special_tokens["bos_token"] == "<s>"


def test_truncation_and_padding_in_the_file_are_not_kept(tmp_path: Path) -> None:
    made = byte_level()
    made.enable_truncation(4)
    made.enable_padding(length=64)
    tokenizer = Text.load(str(save(made, tmp_path)))
    text = "The quick brown fox jumps over it"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_vocabulary_that_only_transformers_reads(tmp_path: Path) -> None:
    made = json.loads(byte_level().to_str())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(made["vocab"]))
    merges = "\n".join(" ".join(pair) for pair in made["merges"])
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + merges)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    tokenizer = Text.load(str(tmp_path))
    assert tokenizer.decode(tokenizer.encode("Größe 🙂 word")) == "Größe 🙂 word"
    theirs = AutoTokenizer.from_pretrained(str(tmp_path))
    assert tokenizer.encode("Größe 🙂 word") == theirs.encode("Größe 🙂 word")


def test_a_slow_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "ByT5Tokenizer"}')
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    tokenizer = Text.load(str(tmp_path))
    theirs = AutoTokenizer.from_pretrained(str(tmp_path))
    ids = tokenizer.encode("naïve 🦀!", add_special_tokens=False)
    assert ids == theirs.encode("naïve 🦀!", add_special_tokens=False)
    stream = TextStream(tokenizer, SamplingParams())
    assert "".join(stream.push((id,)) for id in ids) == "naïve 🦀!"


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda f: None, "no tokenizer in"),
        (lambda f: (f / "tokenizer.json").write_text("{"), "tokenizer.json"),
        (
            lambda f: (
                (f / "tokenizer.json").write_text("{}"),
                (f / "tokenizer_config.json").write_text("[]"),
            ),
            "tokenizer_config.json",
        ),
    ],
)
def test_what_cannot_be_read(tmp_path: Path, make: Any, names: str) -> None:
    make(tmp_path)
    with pytest.raises(LoadError, match=names):
        Text.load(str(tmp_path))


def test_a_folder_that_is_not_there() -> None:
    with pytest.raises(LoadError, match="no folder"):
        Text.load("/no/such/folder")


def test_a_missing_template_file(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no file"):
        Text.load(str(folders["bytes"]), chat_template=str(tmp_path / "none.jinja"))
    broken = tmp_path / "broken.jinja"
    broken.write_text("{% for %}")
    with pytest.raises(ConfigError, match=r"broken\.jinja does not parse"):
        Text.load(str(folders["bytes"]), chat_template=str(broken))


def test_neither_torch_nor_transformers_is_imported(folders: dict[str, Path]) -> None:
    script = (
        "import sys\n"
        "from shoal.engine.text import Tokenizer, TextStream\n"
        "from shoal.engine.request import SamplingParams\n"
        f"t = Tokenizer.load({str(folders['bytes'])!r}, chat_template='{{{{ messages }}}}')\n"
        "ids = t.encode(t.render([{'role': 'user', 'content': 'x'}]))\n"
        "TextStream(t, SamplingParams(stop='x')).push(ids, last=True)\n"
        "print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))\n"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ran.stdout.strip() == "[]", ran.stderr
