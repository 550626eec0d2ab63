"""The tokenizer: a byte-level BPE of 2,048 tokens, learned from the corpus."""

from __future__ import annotations

import json
import re
from itertools import islice
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from .corpus.exercise import Exercise
from .corpus.mixture import stream

SIZE = 2048
END_OF_TEXT, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
# Marks that a reader of the text must see: decoding with skip_special_tokens keeps them.
MARKS = (
    "<tools>",
    "</tools>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
)
_DOCUMENTS = 40_000
_SEED = 11


def learn(folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json into `folder`."""
    tokenizer = Tokenizer(BPE())
    # Digits stand alone, so that a sum lines up digit by digit.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=SIZE - len(MARKS),
        special_tokens=[END_OF_TEXT, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    draft = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    draft.chat_template = (folder / "chat_template.jinja").read_text()
    documents = islice(stream(_SEED, frozenset()), _DOCUMENTS)
    texts = (_plain(draft, document) for document in documents)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(mark, normalized=False) for mark in MARKS])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=None,
        eos_token=END,
        pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
        model_max_length=4096,
    ).save_pretrained(folder)
    # The name that transformers 4 knows as well as 5.
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    path.write_text(json.dumps(settings, indent=2) + "\n")


def _plain(draft: PreTrainedTokenizerFast, document: Exercise | str) -> str:
    """The text of a document without what will be tokens of their own."""
    if isinstance(document, str):
        return document
    text = draft.apply_chat_template(
        document.messages, tools=list(document.tools) or None, tokenize=False
    )
    return re.sub("|".join(map(re.escape, (END_OF_TEXT, START, END, *MARKS))), "\n", text)
