"""Models whose heads are normed, turned and stored in one op: the bits of the ops in turn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from shoal.engine.model.load import load
from shoal.kernels.cpu import passes
from shoal.kernels.cpu.structures import Kind

from .twins import TWINS, chunks, prompts

NAMES = ["llama-gqa", "llama-mqa", "qwen2-windows", "qwen3", "qwen3-windows", "mistral-window"]
NAMES += ["falcon-7b", "falcon-40b", "falcon-sequential", "falcon-rw", "gpt2"]


@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
@pytest.mark.parametrize("name", NAMES)
def test_one_op_for_all_that_is_done_to_heads_changes_no_bit(
    name: str,
    dtype: str,
    tmp_path: Path,
    random_model: Callable[..., Any],
    paged: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    twin = TWINS[name]
    random_model(twin.config, tmp_path)
    model = load(tmp_path, dtype=dtype, packed=True).model
    fused = paged(model)
    monkeypatch.setattr(passes, "fuse_heads", lambda lines: lines)
    plain = paged(model)
    turned = 0 if name in ("falcon-rw", "gpt2") else twin.config.num_hidden_layers
    assert kinds(fused).count(Kind.ROPE_STORE) == turned
    assert Kind.ROPE not in kinds(fused) and Kind.ROPE_STORE not in kinds(plain)
    for rows in chunks(prompts(twin), (33, 1, 5, 1)):
        found, right = fused.step(rows), plain.step(rows)
        assert all(torch.equal(found[key], right[key]) for key in rows)


def kinds(paged: Any) -> list[Kind]:
    return [line.kind for line in paged.forward.tape.lines]
