"""A checkpoint of random weights in a model's shape, with a tokenizer: the same for every peer.

    python benchmarks/peers/checkpoint.py SHAPE FOLDER

SHAPE is a folder with a config.json, such as benchmarks/shapes/qwen3-0.6b.
"""

from __future__ import annotations

import argparse
import itertools
import string
from pathlib import Path

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
FIRST_SPECIAL = 151_643


def make(shape: Path, folder: Path) -> Path:
    """Write the checkpoint, unless it is there already; the folder."""
    if not (folder / "model.safetensors").exists():
        folder.mkdir(parents=True, exist_ok=True)
        _weights(shape, folder)
        _tokenizer(folder)
    return folder


def _weights(shape: Path, folder: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(shape)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.generation_config.do_sample = False
    model.save_pretrained(folder, max_shard_size="100GB")


def _tokenizer(folder: Path) -> None:
    """A byte-level BPE whose ids are bytes, then all short words of small letters."""
    import json

    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    size = json.loads((folder / "config.json").read_text())["vocab_size"]
    first_special = FIRST_SPECIAL if size > FIRST_SPECIAL + len(SPECIAL) else size - len(SPECIAL)
    words = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = []
    letters = string.ascii_lowercase
    for length in (2, 3, 4):
        for word in map("".join, itertools.product(letters, repeat=length)):
            if len(words) == first_special:
                break
            merges.append((word[:-1], word[-1]))
            words.append(word)
    bpe = models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=merges)
    tokenizer = Tokenizer(bpe)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in SPECIAL])
    fill = [f"<|fill_{i}|>" for i in range(size - first_special - len(SPECIAL))]
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in fill])
    tokenizer.save(str(folder / "tokenizer.json"))
    facts = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": 40960,
        "chat_template": "{% for m in messages %}{{ m['content'] }}{% endfor %}",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(facts, indent=2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("shape", type=Path)
    parser.add_argument("folder", type=Path)
    asked = parser.parse_args()
    print(make(asked.shape, asked.folder))
