"""What a step of a model needs of a GPU: the bytes it must read, the operations it must do.

The least that any program could do with: every weight and every key and value that is looked at
read once, every product done once.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Chip:
    """What a GPU can do: bytes a second from its memory, bfloat16 operations a second, dense."""

    name: str
    bytes_per_s: float
    flops: float


# By the name that the driver gives, whole: what else it says (PCIe, NVL, 40GB) is another chip.
# Datasheets of the vendor: an upper bound.
CHIPS = {
    "H200": Chip("H200 SXM", 4.8e12, 989e12),
    "H100 80GB HBM3": Chip("H100 SXM", 3.35e12, 989e12),
    "A100-SXM4-80GB": Chip("A100 SXM 80 GB", 2.039e12, 312e12),
    "A100 80GB PCIe": Chip("A100 PCIe 80 GB", 1.935e12, 312e12),
    "L40S": Chip("L40S", 0.864e12, 362e12),
    "B200": Chip("B200", 8.0e12, 2250e12),
}


@dataclass(frozen=True)
class Model:
    """The sizes of a dense decoder."""

    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_size: int
    vocab: int
    tied: bool
    itemsize: int = 2

    @property
    def layer_weights(self) -> int:
        """Elements of one layer's products."""
        attention = self.hidden * self.head_size * (2 * self.heads + 2 * self.kv_heads)
        return attention + 3 * self.hidden * self.inner

    @property
    def head_weights(self) -> int:
        """Elements of the product that gives logits."""
        return self.hidden * self.vocab

    @property
    def kv_bytes(self) -> int:
        """Bytes of one token's keys and values in all layers."""
        return self.layers * 2 * self.kv_heads * self.head_size * self.itemsize


def read_model(folder: Path) -> Model:
    """The sizes in a folder's config.json."""
    found = json.loads((folder / "config.json").read_text())
    size = found.get("head_dim") or found["hidden_size"] // found["num_attention_heads"]
    return Model(
        layers=found["num_hidden_layers"],
        hidden=found["hidden_size"],
        inner=found["intermediate_size"],
        heads=found["num_attention_heads"],
        kv_heads=found["num_key_value_heads"],
        head_size=size,
        vocab=found["vocab_size"],
        tied=found.get("tie_word_embeddings", False),
    )


def decode_bytes(model: Model, batch: int, context: int) -> int:
    """Bytes that a step of decode must read: the weights once, and every sequence's keys and
    values; it writes one token's.
    """
    weights = (model.layers * model.layer_weights + model.head_weights) * model.itemsize
    return weights + batch * (context + 1) * model.kv_bytes


def decode_floor_s(model: Model, batch: int, context: int, chip: Chip) -> float:
    """The least time of a step of decode: its bytes, or its operations where they take longer."""
    products = 2 * batch * (model.layers * model.layer_weights + model.head_weights)
    scores = 4 * batch * context * model.layers * model.heads * model.head_size
    slowest = max(decode_bytes(model, batch, context) / chip.bytes_per_s, 0.0)
    return max(slowest, (products + scores) / chip.flops)


def prefill_flops(model: Model, prompts: int, length: int) -> int:
    """Operations of the prompts of one step: products of every token, causal attention, and the
    logits of each prompt's last token.
    """
    products = 2 * prompts * length * model.layers * model.layer_weights
    pairs = length * (length + 1) // 2
    scores = 4 * prompts * pairs * model.layers * model.heads * model.head_size
    return products + scores + 2 * prompts * model.head_weights
