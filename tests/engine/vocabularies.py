"""Small tokenizers of each kind that checkpoints come with, and how to save them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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
from transformers import LlamaTokenizer, PreTrainedTokenizerFast

NAMES = ["bytes", "stripped", "spaced", "llama", "metaspace", "words"]
CORPUS = [
    "The quick brown fox jumps over the lazy dog.",
    "  Two spaces, a\ttab\n\nand lines: def f(x): return x + 1",
    "Größe, naïve café, 中文字符 и кириллица, 🙂🎉",
    "password word words wordy sword stop END",
] * 4
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


def save_all(root: Path) -> dict[str, Path]:
    """A folder for each of NAMES."""
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
