"""Text in and out, held against transformers and against the plain decode."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shoal.engine.errors import ConfigError, InvalidRequest, LoadError
from shoal.engine.request import FinishReason, SamplingParams, Update
from shoal.engine.text import TextStream, with_bad_words
from shoal.engine.text import Tokenizer as Text
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from tokenizers import processors as post
from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerFast

CORPUS = [
    "The quick brown fox jumps over the lazy dog.",
    "  Two spaces, a\ttab\n\nand lines: def f(x): return x + 1",
    "Größe, naïve café, 中文字符 и кириллица, 🙂🎉",
    "password word words wordy sword stop END",
] * 4
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
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def byte_level() -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=400,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=["<s>", "</s>", "<|im_start|>", "<|im_end|>"],
            show_progress=False,
        ),
    )
    made.add_tokens([AddedToken("<think>", special=False)])
    made.add_special_tokens(["<\uff5cend\u2581of\uff5c>"])
    return made


def sentencepiece_parts() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges as a Llama conversion has them: specials, bytes, then pieces."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.train_from_iterator(
        [text.encode("ascii", "ignore").decode() for text in CORPUS],
        trainers.BpeTrainer(vocab_size=150, show_progress=False),
    )
    model = json.loads(made.to_str())["model"]
    pieces = ["<unk>", "<s>", "</s>", *BYTES, *model["vocab"]]
    return {piece: i for i, piece in enumerate(pieces)}, [tuple(m) for m in model["merges"]]


def sentencepiece(strip: bool) -> Tokenizer:
    vocab, merges = sentencepiece_parts()
    made = Tokenizer(
        models.BPE(vocab=vocab, merges=merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>")
    )
    made.normalizer = normalizers.Sequence(
        ([normalizers.Prepend("▁")] if strip else []) + [normalizers.Replace(" ", "▁")]
    )
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence(steps + ([decoders.Strip(" ", 1, 0)] if strip else []))
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    made.post_processor = post.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return made


def end_of_word() -> Tokenizer:
    """A BPE whose pieces mark the end of a word: only its own decoder knows the spaces."""
    made = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.decoder = decoders.BPEDecoder("</w>")
    made.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=200,
            end_of_word_suffix="</w>",
            special_tokens=["<unk>", "<s>", "</s>"],
            show_progress=False,
        ),
    )
    return made


def metaspace() -> Tokenizer:
    """Spaces as `▁`, by a decoder that treats the first piece otherwise."""
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    specials = ["<unk>", "<s>", "</s>"]
    made.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=200, special_tokens=specials, show_progress=False),
    )
    return made


def save(made: Tokenizer, folder: Path, **config: Any) -> Path:
    PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", **config
    ).save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tokenizers")
    vocab, merges = sentencepiece_parts()
    LlamaTokenizer(vocab=vocab, merges=merges).save_pretrained(str(root / "llama"))
    return {
        "bytes": save(byte_level(), root / "bytes"),
        "stripped": save(sentencepiece(strip=True), root / "stripped"),
        "spaced": save(sentencepiece(strip=False), root / "spaced"),
        "llama": root / "llama",
        "metaspace": save(metaspace(), root / "metaspace"),
        "words": save(end_of_word(), root / "words"),
    }


@pytest.fixture(scope="session")
def loaded(folders: dict[str, Path]) -> dict[str, Text]:
    return {name: Text.load(str(folder)) for name, folder in folders.items()}


NAMES = ["bytes", "stripped", "spaced", "llama", "metaspace", "words"]


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
