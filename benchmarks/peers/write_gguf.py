"""Write a bfloat16 checkpoint of Qwen3's architecture as a GGUF file, without a tokenizer.

python write_gguf.py CHECKPOINT FILE      (in an environment with numpy and gguf)
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np

LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def tensors(checkpoint: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Names and bfloat16 bits as uint16."""
    for file in sorted(checkpoint.glob("*.safetensors")):
        with file.open("rb") as data:
            size = int.from_bytes(data.read(8), "little")
            header = json.loads(data.read(size))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            if entry["dtype"] != "BF16":
                sys.exit(f"{name} is {entry['dtype']}; only bfloat16 is written")
            begin, end = entry["data_offsets"]
            bits = np.memmap(file, np.uint16, "r", 8 + size + begin, ((end - begin) // 2,))
            yield name, bits.reshape(entry["shape"])


def renamed(name: str) -> str:
    """A checkpoint's name as GGUF has it."""
    stem = name.removesuffix(".weight")
    if stem in TOP:
        return f"{TOP[stem]}.weight"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{LAYER[part]}.weight"


def main() -> None:
    checkpoint, target = Path(sys.argv[1]), Path(sys.argv[2])
    config = json.loads((checkpoint / "config.json").read_text())
    rope = config.get("rope_parameters") or config
    partial = target.with_suffix(".partial")
    writer = gguf.GGUFWriter(str(partial), "qwen3")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    for name, bits in tensors(checkpoint):
        if bits.ndim == 1:
            writer.add_tensor(renamed(name), (bits.astype(np.uint32) << 16).view(np.float32))
        else:
            rows = np.ascontiguousarray(bits).view(np.uint8)
            kind = gguf.GGMLQuantizationType.BF16
            writer.add_tensor(renamed(name), rows, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.rename(target)


if __name__ == "__main__":
    main()
