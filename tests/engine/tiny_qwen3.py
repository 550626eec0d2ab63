"""A small random Qwen3 and what its tests share."""

from __future__ import annotations

import time
from typing import Any

import torch
from shoal.engine.llm import LLM
from shoal.engine.request import SamplingParams
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

CORPUS = ["The capital of France is Paris. Hello, my name is Ann; what is yours?", "def f(x):"] * 9
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PROMPTS = ["Hello, my name is", "The capital of France is", "def f", "x y z", "Größe 🙂", "what"]
VOCAB, EOS = 512, 1
KEYS: dict[str, Any] = {
    "dtype": "float32",
    "max_model_len": 128,
    "max_num_seqs": 8,
    "num_gpu_blocks_override": 200,
    "block_size": 16,
    "threads": 1,  # a second one gains nothing here, and waits for a core on a busy machine
}
GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)


def save_qwen3(path: str) -> None:
    """A model whose text wanders, with a tokenizer, a template and sampling defaults."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=360,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=["<|endoftext|>", "<|im_end|>", "<|im_start|>"],
        show_progress=False,
    )
    made.train_from_iterator(CORPUS, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|im_end|>")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(path)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=256,
        initializer_range=0.3,
        tie_word_embeddings=False,
        eos_token_id=EOS,
    )
    model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=0.7, top_p=0.8, top_k=20, max_new_tokens=9, eos_token_id=EOS
    )
    model.save_pretrained(path)


def idle(llm: LLM) -> None:
    deadline = time.monotonic() + 60
    while llm._engine.load().running or llm._engine.load().waiting:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert llm._engine.load().kv_usage == 0
