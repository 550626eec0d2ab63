"""Each family from a checkpoint folder to text, through the offline interface: as transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from shoal.engine.errors import InvalidRequest
from shoal.engine.llm import LLM
from shoal.engine.request import SamplingParams
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    FalconConfig,
    GPT2Config,
    GPT2Tokenizer,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
)

from .vocabularies import byte_level, save

SMALL: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
GROUPED: dict[str, Any] = {**SMALL, "intermediate_size": 96, "num_key_value_heads": 2}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
FAMILIES: dict[str, PreTrainedConfig] = {
    "Llama, yarn": LlamaConfig(**{**GROUPED, "max_position_embeddings": 64}, rope_parameters=YARN),
    "DeepSeek-R1-Distill-Qwen": Qwen2Config(
        **GROUPED, use_sliding_window=False, sliding_window=24, max_window_layers=2
    ),
    "Mistral": MistralConfig(**GROUPED, sliding_window=24, head_dim=24),
    "GPT-2": GPT2Config(**SMALL),
    "Falcon-7B": FalconConfig(**SMALL),
    "Falcon-40B": FalconConfig(**SMALL, new_decoder_architecture=True, num_kv_heads=2),
    "Falcon-RW": FalconConfig(
        **SMALL, multi_query=False, parallel_attn=False, bias=True, alibi=True
    ),
}
SHARED = (
    "The quick brown fox jumps over the lazy dog, said the naïve café; 中文字符, word by word. "
)
PROMPTS = [SHARED + "And then?", SHARED + "Größe 🙂 " * 4, "def f(x):", "STOP", SHARED * 2]
GREEDY = SamplingParams(temperature=0, max_tokens=40)
KEYS: dict[str, Any] = {
    "dtype": "float32",
    "threads": 1,
    "block_size": 16,
    "max_num_seqs": 4,
    "max_num_batched_tokens": 16,
    "num_gpu_blocks_override": 120,
}


def save_model(config: PreTrainedConfig, folder: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if name.endswith("bias"):
                    weight.normal_(0, 0.1)
        model.save_pretrained(folder)


def continuation(folder: Path, prompts: list[str]) -> list[list[int]]:
    """Ids of transformers' greedy text, the one that ends it included."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    texts = []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt")
        with torch.inference_mode():
            whole = model.generate(**ids, do_sample=False, max_new_tokens=40, pad_token_id=0)
        texts.append(whole[0, ids["input_ids"].shape[1] :].tolist())
    return texts


@pytest.mark.parametrize("name", FAMILIES)
def test_text_is_that_of_transformers(name: str, tmp_path: Path) -> None:
    """Prompts in chunks of 16 tokens, beginnings from the cache, windows passed."""
    save_model(FAMILIES[name], tmp_path)
    save(byte_level(), tmp_path)
    right = continuation(tmp_path, PROMPTS)
    with LLM(str(tmp_path), **KEYS) as llm:
        for warm in (False, True):
            outputs = llm.generate(PROMPTS, GREEDY, use_tqdm=False)
            assert [list(output.outputs[0].token_ids) for output in outputs] == right
            assert (outputs[0].num_cached_tokens or 0) >= 32 * warm
        alone = llm.generate(PROMPTS[1], GREEDY, use_tqdm=False)
        assert list(alone[0].outputs[0].token_ids) == right[1]


def test_dialogpt(tmp_path: Path) -> None:
    """A GPT-2 with the vocabulary's files of 2019, no chat template, and its own end of text."""
    tokenizer = byte_level()
    vocabulary = json.loads(tokenizer.to_str())["model"]
    named = {**vocabulary["vocab"], "<|endoftext|>": 50256}
    (tmp_path / "vocab.json").write_text(json.dumps(named))
    merges = "\n".join(" ".join(pair) for pair in vocabulary["merges"])
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + merges + "\n")
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"model_max_length": 1024, "tokenizer_class": GPT2Tokenizer.__name__})
    )
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4}
    save_model(GPT2Config(**sizes, initializer_range=0.2), tmp_path)
    old = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": 50257,
        "n_ctx": 1024,
        "n_positions": 1024,
        "eos_token_id": 50256,
    }
    (tmp_path / "config.json").write_text(json.dumps({**old, **sizes}))
    turns = ["Hello<|endoftext|>", "word<|endoftext|>fox<|endoftext|>"]
    right = continuation(tmp_path, turns)
    with LLM(str(tmp_path), **{**KEYS, "num_gpu_blocks_override": 200}) as llm:
        outputs = llm.generate(turns, GREEDY, use_tqdm=False)
        assert [list(output.outputs[0].token_ids) for output in outputs] == right
        assert outputs[0].prompt_token_ids is not None
        assert outputs[0].prompt_token_ids[-1] == 50256
        with pytest.raises(InvalidRequest, match="chat template"):
            llm.chat([{"role": "user", "content": "Hello"}], GREEDY, use_tqdm=False)
